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
.gradio-container main { width: 100%; max-width: 1180px !important; margin: 0 auto; }
.dark input[type="range"] { --neutral-200: var(--neutral-700); }
.sr {
  position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space:
  nowrap;
}
.gradio-container button:focus-visible, .gradio-container [tabindex]:focus-visible {
  outline: 3px solid var(--primary-500); outline-offset: 2px;
}

.gradio-container .html-container { padding: 0; }

#header { padding-top: .5rem; }
#header h1 {
  font-size: clamp(1.6rem, 5vw, 2.1rem); font-weight: 750; letter-spacing: -.03em; line-height: 1.2; margin: 0 0 .3rem;
}
#header p { color: var(--body-text-color-subdued); font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
#header .facts { display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .8rem; }
#header .facts > * {
  font-size: .85rem; padding: .15rem .7rem; border-radius: 99px; text-decoration: none; overflow-wrap: anywhere;
  color: var(--body-text-color); background: var(--block-background-fill);
  border: 1px solid var(--border-color-primary);
}
#header .facts > b { color: white; background: var(--primary-600); border-color: var(--primary-600); }
#header .facts > a:hover { border-color: var(--primary-500); }

/* Choosing, or while pictures are classified how far that is: gradio shows one, by whether there is a bar */
#files { border: 2px dashed var(--primary-300) !important; transition: border-color .15s, background .15s; }
.dark #files { border-color: var(--primary-800) !important; }
#files:hover { border-color: var(--primary-500) !important; background: var(--primary-50); }
.dark #files:hover { background: var(--neutral-800); }
#files .upload-container .wrap { display: none; } /* gradio's words contradict what it tells screen readers */
#files .upload-container::before { content: "+"; font-size: 2.2rem; line-height: 1; color: var(--primary-500); }
#files .upload-container::after {
  content: "Drop pictures here, or click to choose\\A up to 500 at a time"; white-space: pre-line; text-align: center;
  line-height: 1.6; color: var(--body-text-color);
}
#files .upload-container { flex-direction: column; gap: .6rem; }
#picker { gap: .5rem; }
#top:has([role="progressbar"]) #picker, #top:not(:has([role="progressbar"])) #working { display: none; }
#working {
  justify-content: center; gap: .8rem; padding: 1.4rem; min-height: 216px; border-radius: var(--radius-lg);
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
}
#progress p { font-size: 1.15rem; font-weight: 600; margin: .6rem 0 0; font-variant-numeric: tabular-nums; }
#progress [role="progressbar"] { height: .7rem; border-radius: 99px; overflow: hidden; background: var(--neutral-200); }
.dark #progress [role="progressbar"] { background: var(--neutral-700); }
#progress [role="progressbar"] span {
  display: block; height: 100%; border-radius: 99px; background: var(--primary-500); transition: width .4s;
}
.smaller:not([hidden]) { display: flex; align-items: center; gap: .8rem; margin-top: .8rem; }
.smaller label { flex: 1; }
.smaller progress {
  display: block; width: 100%; height: .7rem; margin-top: .3rem; appearance: none; border: 0; border-radius: 99px;
  overflow: hidden; background: var(--neutral-200);
}
.dark .smaller progress { background: var(--neutral-700); }
.smaller progress::-webkit-progress-bar { background: transparent; }
.smaller progress::-webkit-progress-value { border-radius: 99px; background: var(--primary-500); }
.smaller progress::-moz-progress-bar { border-radius: 99px; background: var(--primary-500); }
.ways { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; color: var(--body-text-color-subdued); }
#ways button {
  padding: .35rem .9rem; border-radius: 99px; font-weight: 500; color: var(--body-text-color);
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
}
#ways button:hover { border-color: var(--primary-500); }
#ways dialog { padding: 1rem; border: 0; border-radius: var(--radius-lg); background: var(--block-background-fill); }
#ways dialog::backdrop { background: rgb(2 6 23 / .6); }
#ways dialog video { max-width: min(80vw, 640px); border-radius: var(--radius-md); background: black; }
#ways dialog div { display: flex; gap: .5rem; margin-top: .8rem; justify-content: center; }

#models-notice, .failures {
  border-left: 4px solid #f59e0b; border-radius: var(--radius-md); padding: .6rem 1rem;
  background: var(--block-background-fill);
}
.failures ul { margin: .3rem 0 0; padding-left: 1.2rem; list-style: disc; max-height: 8rem; overflow-y: auto; }
.failures li { overflow-wrap: anywhere; }

#try { gap: .5rem; }
#try p { font-weight: 600; margin: .3rem 0 0; }
#examples ul {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(62px, 1fr)); gap: .5rem;
  list-style: none; padding: 0; margin: 0;
}
#examples button {
  display: block; width: 100%; aspect-ratio: 1; padding: 0; border-radius: var(--radius-md); overflow: hidden;
}
#examples img { width: 100%; height: 100%; object-fit: cover; transition: transform .15s; }
#examples button:hover img { transform: scale(1.06); }
#results { gap: 1rem; }
#toolbar { align-items: flex-start; }
/* while the first pictures stream in, there is nothing to say of them all */
#results:not(:has(#summary p)) :is(#toolbar, #counts, #details, #takeaway), #detail:not(:has(h2)) { display: none; }
#summary p { margin: .4rem 0; }
#filters { align-items: stretch; }
#filters label { padding: .25rem .7rem; }
.cells {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(128px, 24vw), 1fr)); gap: .6rem; align-content:
  start; list-style: none; margin: 0; padding: 4px; max-height: 720px; overflow-y: auto;
}
.cell {
  position: relative; display: block; width: 100%; aspect-ratio: 1; padding: 0; overflow: hidden; text-align: left;
  border-radius: var(--radius-md); background: var(--neutral-200);
}
.dark .cell { background: var(--neutral-800); }
.cell img { width: 100%; height: 100%; object-fit: cover; }
.cell[aria-pressed="true"] { box-shadow: 0 0 0 3px var(--primary-500); }
.cell .said {
  position: absolute; inset: auto 0 0 0; padding: 1.6rem .5rem .4rem; font-size: .82rem; line-height: 1.25; color:
  white;
  background: linear-gradient(transparent, rgb(2 6 23 / .9) 60%); overflow-wrap: anywhere;
}
.cell.unknown .said { background: linear-gradient(transparent, rgb(120 53 15 / .95) 60%); }
.cell.error .said > * { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
.cell.error .said { position: static; display: block; padding: .2rem .5rem; color: var(--body-text-color); background:
none; } .cell .broken { display: block; padding: .5rem .5rem 0; font-size: 1.2rem; color: #b91c1c; } .dark .cell .broken
{ color: #f87171; }

#detail {
  position: sticky; top: 1rem; padding: 1rem 1.2rem; border-radius: var(--radius-lg); overflow-wrap: anywhere;
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
}
#detail .file { font-size: .85rem; color: var(--body-text-color-subdued); margin: 0; }
#detail h2 { font-size: 2rem; font-weight: 750; letter-spacing: -.02em; line-height: 1.2; color: var(--primary-600); }
.dark #detail h2 { color: var(--primary-400); }
#detail h2 small { font-size: 1.1rem; font-weight: 500; color: var(--body-text-color-subdued); }
#detail h3 { font-size: .95rem; font-weight: 650; margin: 1rem 0 .3rem; }
.doubt { color: #92400e; font-weight: 600; }
.dark .doubt { color: #fbbf24; }
.bars { list-style: none; margin: 0; padding: 0; font-variant-numeric: tabular-nums; }
.bars li {
  display: grid; grid-template-columns: minmax(5.5rem, min(30%, 11rem)) 1fr 3.6rem; gap: .6rem; align-items: center;
  padding: .12rem 0;
}
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .value { text-align: right; }
.bars .track { height: .55rem; border-radius: 99px; background: var(--neutral-200); overflow: hidden; }
.dark .bars .track { background: var(--neutral-700); }
.bars .track span { display: block; height: 100%; border-radius: 99px; background: var(--primary-500); }
.figures { display: flex; gap: .6rem; margin-top: .5rem; }
.figures figure, .figures.waiting span { flex: 1; max-width: 210px; margin: 0; }
.figures img { width: 100%; border-radius: var(--radius-md); }
.figures.waiting span {
  aspect-ratio: 1; margin-bottom: 2.6rem; border-radius: var(--radius-md); background: var(--neutral-200);
}
.dark .figures.waiting span { background: var(--neutral-800); }
figcaption { font-size: .8rem; color: var(--body-text-color-subdued); margin-top: .2rem; }

#table, #comparison .scroll { max-height: 480px; overflow: auto; }
#table table, #comparison table {
  width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
}
#table th, #comparison thead th {
  position: sticky; top: 0; z-index: 1; text-align: left; background: var(--block-background-fill); white-space: nowrap;
}
#table td, #table th, #comparison td, #comparison th {
  padding: .4rem .6rem; border-bottom: 1px solid var(--border-color-primary); vertical-align: middle;
}
#table button { font: inherit; text-align: left; padding: .1rem .2rem; border-radius: var(--radius-sm); }
#table th button { font-weight: 650; }
#table .open { text-decoration: underline; text-underline-offset: 3px; overflow-wrap: anywhere; min-width: 6rem; }
#table th[aria-sort="ascending"] button span::after { content: " ↑"; }
#table th[aria-sort="descending"] button span::after { content: " ↓"; }

.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); gap: 1rem;
  margin: .5rem 0 1rem;
}
.cards section {
  padding: 1rem 1.2rem; border-radius: var(--radius-lg); background: var(--block-background-fill);
  border: 1px solid var(--border-color-primary);
}
.cards h2, .about h2 { font-size: 1.2rem; font-weight: 700; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.cards dl > div, .about dl > div { display: flex; gap: 1rem; justify-content: space-between; padding: .15rem 0; }
.cards dt, .about dt { color: var(--body-text-color-subdued); }
.cards dd, .about dd { margin: 0; text-align: right; font-weight: 600; overflow-wrap: anywhere; }
.cards small, .about small { font-weight: 400; color: var(--body-text-color-subdued); }
#comparison .scroll, #table { border-radius: var(--radius-lg); background: var(--block-background-fill); }
#comparison tbody th { font-weight: 400; text-align: left; }
#comparison th div { display: flex; align-items: center; gap: .7rem; overflow-wrap: anywhere; }
#comparison img { width: 56px; height: 56px; object-fit: cover; border-radius: var(--radius-md); flex: none; }
#comparison .disagree { background: #fffbeb; }
.dark #comparison .disagree { background: #451a0333; }
#comparison .disagree td b { color: #92400e; }
.dark #comparison .disagree td b { color: #fbbf24; }

.about dl { max-width: 560px; }
.about dt { white-space: nowrap; }
.about p { max-width: 70ch; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 1rem; align-items:
start; } .plots figure { margin: 0; } .plots img { width: 100%; border-radius: var(--radius-md); background: white;
padding: .4rem; }

#footer { color: var(--body-text-color-subdued); font-size: .85rem; text-align: center; }

@media (max-width: 640px) {
  #examples ul { display: flex; overflow-x: auto; padding: .3rem; }
  #examples li { flex: 0 0 62px; }
  #comparison th div { display: block; max-width: 96px; }
  #comparison th div span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size:
  .8rem; } .cells { max-height: 62vh; } #toolbar { flex-direction: column; }
}
"""
