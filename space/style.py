"""How the page looks: a theme without web fonts, and the CSS that gradio's settings don't reach."""

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

CSS = """
.gradio-container main { width: 100%; max-width: 1120px !important; margin: 0 auto; }
.dark input[type="range"] { --neutral-200: var(--neutral-700); }

#header { padding-top: .5rem; }
#header h1 {
  font-size: clamp(1.6rem, 5vw, 2.1rem); font-weight: 750; letter-spacing: -.03em; line-height: 1.2; margin: 0 0 .3rem;
}
#header p { color: var(--body-text-color-subdued); font-size: 1.05rem; margin: 0; }
#header .facts { display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .8rem; }
#header .facts > * {
  font-size: .85rem; padding: .15rem .7rem; border-radius: 99px; text-decoration: none;
  color: var(--body-text-color); background: var(--block-background-fill);
  border: 1px solid var(--border-color-primary);
}
#header .facts > b { color: white; background: var(--primary-600); border-color: var(--primary-600); }
#header .facts > a:hover { border-color: var(--primary-500); }

#files { border: 2px dashed var(--primary-300) !important; transition: border-color .15s, background .15s; }
.dark #files { border-color: var(--primary-800) !important; }
#files:hover { border-color: var(--primary-500) !important; background: var(--primary-50); }
.dark #files:hover { background: var(--neutral-800); }
#files button { min-height: 150px; }

#notice, #models-notice {
  border-left: 4px solid #f59e0b; border-radius: var(--radius-md); padding: .6rem 1rem;
  background: var(--block-background-fill);
}
#notice ul { margin: .3rem 0 0; padding-left: 1.2rem; list-style: disc; max-height: 8rem; overflow-y: auto; }
#notice li { overflow-wrap: anywhere; }

#gallery .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(148px, 40%), 1fr)) !important; padding: .6rem;
}
#gallery .caption-label {
  inset: auto 0 0 0; max-width: none; padding: 1.4rem .6rem .45rem; border: 0; border-radius: 0;
  color: white; background: linear-gradient(transparent, rgb(2 6 23 / .85));
  font-size: .82rem; font-weight: 600; line-height: 1.2; text-align: left; white-space: normal;
}

#label .output-class {
  font-size: 2.4rem; font-weight: 750; letter-spacing: -.02em; padding: 1.4rem 0 1rem;
  color: var(--primary-600); overflow-wrap: anywhere;
}
.dark #label .output-class { color: var(--primary-400); }
#label meter { height: .5rem; border-radius: 99px; }
#label dl, #label dt, #label dd { font-family: var(--font); font-variant-numeric: tabular-nums; }

#try { font-weight: 600; padding: .4rem 0 0; margin-bottom: -.6rem; }
#examples { border: 0; box-shadow: none; background: none; padding: 0; overflow: visible !important; }
#examples .grid-wrap { height: auto !important; min-height: 0; max-height: none; overflow: visible; padding: 0; }
#examples .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(clamp(54px, 8vw, 90px), 1fr)) !important; gap: .6rem; padding: 0;
  grid-auto-rows: auto !important; grid-template-rows: none !important;
}
#examples .thumbnail-item { height: auto; aspect-ratio: 1; transition: transform .15s; }
#examples .thumbnail-item:hover { transform: translateY(-3px); }
#examples .caption-label { display: none; }

#footer { color: var(--body-text-color-subdued); font-size: .85rem; text-align: center; }
"""
