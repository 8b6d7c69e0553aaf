"""`python -m train compact`: see `train.compact`."""

import tyro

from train.compact import Plan, run


def main() -> None:
    """Train, or resume, and print the table."""
    plan = tyro.extras.subcommand_cli_from_dict({"compact": Plan}, prog="python -m train")
    for steps, table in run(plan).items():
        row = "  ".join(f"{name} {psnr:.2f} dB" for name, psnr in table.items())
        print(f"{steps}: {row}")
        print(
            f"  both over none {table['both'] - table['none']:+.2f} dB, "
            f"spatial over global alone {table['both'] - table['global']:+.2f} dB"
        )


if __name__ == "__main__":
    main()
