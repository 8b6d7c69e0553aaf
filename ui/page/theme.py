"""Colours, type and measures of the page: the tokens of the design as a Gradio theme."""

import gradio as gr

from ..palette import ACCENT as BLUE
from ..palette import hex_of

ACCENT = gr.themes.Color(
    name="accent",
    c50="#eef6ff",
    c100="#d9eaff",
    c200="#b6d6ff",
    c300="#86bbff",
    c400="#5a9dff",
    c500=hex_of(BLUE),
    c600="#2f6fe0",
    c700="#2559ba",
    c800="#1f4891",
    c900="#1b3c75",
    c950="#122548",
)
INK = gr.themes.Color(
    name="ink",
    c50="#f7f8f9",
    c100="#eceef0",
    c200="#dcdfe3",
    c300="#bfc4cb",
    c400="#969da8",
    c500="#6d7581",
    c600="#4b525d",
    c700="#343a43",
    c800="#22272e",
    c900="#181b20",
    c950="#101216",
)
SANS = ["Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif"]
"""Names of installed families only: a page that fetches a font tells a stranger who opened it."""


def theme() -> gr.themes.Base:
    """The one theme, light and dark."""
    base = gr.themes.Base(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue=INK,
        text_size="sm",
        spacing_size="sm",
        radius_size="md",
        font=SANS,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return base.set(
        body_background_fill="white",
        body_background_fill_dark="*neutral_950",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="*neutral_900",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_border_width_dark="0px",
        block_title_text_weight="500",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_400",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        panel_background_fill="transparent",
        panel_background_fill_dark="transparent",
        panel_border_width="0px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_200",
        input_border_color_dark="*neutral_700",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="transparent",
        button_secondary_border_color_dark="transparent",
        button_large_text_weight="600",
        button_large_radius="8px",
        button_small_radius="6px",
        slider_color="*primary_500",
        slider_color_dark="*primary_500",
        layout_gap="12px",
        form_gap_width="0px",
    )
