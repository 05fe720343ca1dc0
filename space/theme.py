"""The page's colours and fonts as a gradio theme, without web fonts. What gradio's settings don't reach is in
static/page.css.
"""

import gradio as gr

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.indigo,
    secondary_hue=gr.themes.colors.indigo,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_lg,
    font=["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
).set(
    body_background_fill="*neutral_100",
    body_background_fill_dark="*neutral_950",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_label_text_color="*neutral_600",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_color_dark="*neutral_800",
    block_shadow="0 1px 3px rgb(15 23 42 / 0.08)",
    block_shadow_dark="none",
    stat_background_fill="linear-gradient(90deg, *primary_500, *primary_400)",
    stat_background_fill_dark="linear-gradient(90deg, *primary_500, *primary_400)",
    button_secondary_background_fill="white",
    button_secondary_background_fill_dark="*neutral_900",
    button_secondary_border_color="*neutral_300",
    button_secondary_border_color_dark="*neutral_700",
    button_secondary_text_color="*neutral_700",
    button_secondary_text_color_dark="*neutral_200",
    button_border_width="1px",
    button_large_text_weight="500",
)
