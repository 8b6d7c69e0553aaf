"""The packages of the wheel: nothing is installed outside `worldstereo`.

In the repository the app and its assets stand at the top level, because a hosted Space starts
`app.py` from there; in the wheel they are `worldstereo.ui` and `worldstereo.assets`.
"""

from setuptools import find_packages, setup

app = [f"worldstereo.{name}" for name in find_packages(include=["ui", "ui.*"])]

setup(
    packages=[*find_packages(include=["worldstereo", "worldstereo.*"]), *app, "worldstereo.assets"],
    package_dir={"worldstereo.ui": "ui", "worldstereo.assets": "assets"},
    package_data={
        "worldstereo": ["py.typed"],
        "worldstereo.exports": ["viewer.html"],
        "worldstereo.ui.page": ["*.css", "*.js", "templates/*", "catalogue/*.json"],
        "worldstereo.ui.tour": ["*.js", "scripts/*.json"],
        "worldstereo.assets": ["icons/*", "examples/**/*"],
    },
)
