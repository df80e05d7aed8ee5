"""The style sheet: one accent, system fonts, light and dark, narrow screens and paper."""

DARK = """--paper:#12151b;--panel:#1a1e26;--ink:#e7eaf0;--soft:#9aa4b4;--line:#2c323d;--grid:#242a34;--track:#262c37;
--accent:#8db0ff;--rgb:141 176 255;--on:#0d1017;--mid:#0d1017;--wrong:#ff9c8f"""

BASE = """
:root{color-scheme:light dark;--paper:#fff;--panel:#f6f7f9;--ink:#1a1e26;--soft:#5a6372;--line:#dfe3e9;--grid:#eceff3;
--track:#e9ecf1;--accent:#2a56c6;--rgb:42 86 198;--on:#fff;--mid:#1a1e26;--wrong:#b3261e}
@media screen and (prefers-color-scheme:dark){:root{%DARK%}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);overflow-wrap:anywhere;
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","DejaVu Sans",sans-serif}
main,header,footer{max-width:72rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:3rem}
h1{font-size:2.1rem;line-height:1.15;letter-spacing:-.02em;margin:0 0 .5rem;text-wrap:balance}
h2{font-size:1.35rem;letter-spacing:-.01em;margin:0 0 .35rem}
h3{font-size:1.05rem;margin:0 0 .2rem}
h3 small{font-weight:400;color:var(--soft);font-size:.85rem;margin-left:.35rem}
p{margin:0 0 .4rem}
ul,ol,dl,figure{margin:0;padding:0}
ul,ol{list-style:none}
a{color:var(--accent);text-underline-offset:.15em}
table,.big,.score,.versus,dd,svg text{font-variant-numeric:tabular-nums}
.lead{color:var(--soft);font-size:1.05rem;max-width:46rem}
.intro{color:var(--soft);max-width:46rem;margin-bottom:1.25rem}
main>section{padding:2.5rem 0 0;margin-top:2.5rem;border-top:1px solid var(--line)}
.wide{overflow-x:auto}
.note,.where,.label,.unit,.versus{color:var(--soft);font-size:.85rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(12.5rem,1fr));gap:1rem;margin-top:2rem}
.tiles li{background:var(--panel);border-radius:.6rem;padding:1rem 1.15rem}
.tiles p{margin:0}
.big{font-size:2.3rem;font-weight:650;line-height:1.1;letter-spacing:-.02em;color:var(--accent)}
.tiles .bar{margin:.6rem 0 .75rem}
.tiles .versus{margin-top:.5rem;padding-top:.5rem;border-top:1px solid var(--line)}
.bar{display:block;width:100%;height:9px}
.track{fill:var(--track)}.bar .value{fill:var(--accent)}.bar .control{fill:var(--soft)}
.bar .chance{stroke:var(--ink);stroke-width:2px;vector-effect:non-scaling-stroke}
.strip{display:grid;grid-template-columns:repeat(6,minmax(0,1fr));gap:1rem;margin-top:1.5rem}
.strip .said{margin:.5rem 0 .1rem;font-size:.9rem;line-height:1.35}
.strip .said,.found .text,.card .said,.card .true{display:-webkit-box;-webkit-box-orient:vertical;
overflow:hidden;padding-bottom:.3em;-webkit-line-clamp:4;line-clamp:4}
.card .said,.card .true{-webkit-line-clamp:12;line-clamp:12}
.plate{display:flex;background:#fff;border:1px solid var(--line);border-radius:.6rem;justify-content:center}
.plate img{display:block;width:6rem;height:6rem;object-fit:contain;padding:.3rem;color:#1a1e26;
font-size:.7rem;overflow:hidden}
nav{margin-top:1.75rem;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;font-size:.92rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
.results{border-collapse:collapse;width:100%;font-size:.92rem;margin:.6rem 0 2rem}
.results th,.results td{padding:.5rem .75rem;text-align:right;border-bottom:1px solid var(--line);vertical-align:middle}
.results thead th,.results thead td{color:var(--soft);font-weight:400;font-size:.82rem;line-height:1.25;
vertical-align:bottom;overflow-wrap:normal;min-width:5rem;max-width:8rem}
.results th:first-child{text-align:left;padding-left:0;font-weight:500;max-width:none;min-width:15.5rem}
.results .note{display:block;font-weight:400}
.results .ours{font-weight:650;color:var(--accent);white-space:nowrap}
.results .bar-cell{width:24%;min-width:8rem}
.results td:last-child,.results th:last-child{padding-right:0}
.models{border-collapse:collapse;width:100%;font-size:.92rem;margin:.4rem 0 1.6rem}
.models th,.models td{padding:.32rem .75rem;text-align:right;vertical-align:middle;border-bottom:1px solid var(--line)}
.models thead th{color:var(--soft);font-weight:400;font-size:.82rem;vertical-align:bottom;overflow-wrap:normal}
.models th:first-child{text-align:left;padding-left:0;font-weight:500;min-width:12rem}
.models td:last-child,.models th:last-child{padding-right:0}
.models tr.more th,.models tr.more td{border-bottom:0;padding-bottom:.05rem}
.models .who{text-align:left;color:var(--soft);min-width:8rem}.models .first .who{color:var(--ink)}
.models .plot{width:34%;min-width:10rem}.models td{white-space:nowrap}.models td.who{white-space:normal}
.models .value{font-weight:650}.models .first .value{color:var(--accent)}
.models .range,.models .p{color:var(--soft);font-size:.85rem;font-weight:400}
.models .sure{font-weight:650}
.models .note{display:block;font-weight:400}
.span{display:block;width:100%;height:14px}
.span .reach{fill:var(--soft);opacity:.3}.span .at{fill:var(--soft)}.span .track{fill:var(--track)}
.span.ours .reach{fill:var(--accent);opacity:.3}.span.ours .at{fill:var(--accent)}
.span .chance,.span .zero{stroke:var(--ink);stroke-width:1.5px;vector-effect:non-scaling-stroke}
.span .chance{stroke-dasharray:2 2}
.terms+h3,.wide+h3{margin-top:2.2rem}
.terms{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.35rem 1.25rem;font-size:.92rem}
.terms dt{font-weight:500}.terms dd{margin:0;color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:1rem 1.5rem}
.facts dt{color:var(--soft);font-size:.85rem}.facts dd{margin:0;font-weight:500}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(16rem,1fr));gap:1rem}
.card{border:1px solid var(--line);border-radius:.6rem;padding:.9rem;font-size:.9rem;line-height:1.4;min-width:0}
.card .head{display:grid;grid-template-columns:auto minmax(0,1fr);gap:.85rem;align-items:start;margin-bottom:.6rem}
.card .plate img{width:5.25rem;height:5.25rem}
.said{font-weight:550}
.card p{margin:0}
.card .label{margin-top:.55rem;font-size:.78rem}
.card .ends{display:flex;justify-content:space-between;gap:.5rem}
.verdict{font-size:.8rem;font-weight:600}
.verdict.right{color:var(--accent)}.verdict.wrong{color:var(--wrong)}.verdict.near{color:var(--soft)}
mark{background:none;color:var(--wrong);text-decoration:underline wavy var(--wrong) 1px;text-underline-offset:.2em}
u{text-decoration:underline dotted var(--soft) 2px;text-underline-offset:.2em}
.found li{display:grid;grid-template-columns:1rem minmax(0,1fr) auto;gap:.25rem;color:var(--soft);align-items:baseline}
.found .truth{color:var(--ink);font-weight:550}.found .tick{color:var(--accent);font-weight:700}
.found .score{font-size:.8rem}
.confusions{display:flex;flex-wrap:wrap;gap:2.5rem 3rem;align-items:flex-start}
.confusion{min-width:min(22rem,100%);max-width:100%}
.confusion>p{contain:inline-size}
.heat{border-collapse:separate;border-spacing:2px;font-size:.85rem;margin-top:.5rem}
.heat th{overflow-wrap:break-word;font-weight:400;text-align:right;padding:.2rem .5rem;max-width:11rem}
.heat tbody th{min-width:5rem}
.heat thead th{text-align:center;vertical-align:bottom;max-width:4.4rem;padding:.2rem;line-height:1.2}
.heat tbody td{min-width:4.4rem;height:2.3rem;text-align:center;border-radius:.2rem}
.large .heat tbody td{min-width:2.6rem;height:2.1rem}
.slanted thead th{padding:.3rem 0}
.slanted thead th span{display:inline-block;writing-mode:vertical-rl;transform:rotate(180deg);max-height:9rem;
text-align:left}
.slanted thead th:last-child span{writing-mode:horizontal-tb;transform:none}
.heat .corner,.heat .total,.heat thead th:last-child{color:var(--soft);font-size:.75rem}
.heat .corner{text-align:right;vertical-align:bottom;padding:.2rem .5rem;white-space:nowrap}
.heat .right{outline:1.5px solid var(--ink);outline-offset:-1.5px}
.h0{color:var(--soft);background:var(--panel)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:2rem 1.5rem}
.chart-box{min-width:0;max-width:30rem;display:flex;flex-direction:column;justify-content:space-between}
figcaption{font-size:.92rem;margin-bottom:.35rem}
.keys{display:flex;flex-wrap:wrap;gap:.1rem 1rem;color:var(--soft);font-size:.82rem}
.key{display:inline-flex;align-items:center;gap:.4rem}
.swatch{width:22px;height:10px}
p.keys{margin:2rem 0 0}p.keys+.tiles{margin-top:.6rem}
.grid+h3{margin-top:2.2rem}h3+.intro{margin-bottom:.9rem}
.chart{display:block;width:100%;height:auto}
.chart text{font-size:10.5px;fill:var(--soft)}
.chart .end{font-weight:650;font-size:11px}
.gridline{stroke:var(--grid)}.axis{stroke:var(--line)}
.line,.raw{fill:none;stroke-linejoin:round;stroke-linecap:round}
.line{stroke-width:1.8px}.raw{stroke-width:.8px;opacity:.3}
.l0,.l2{stroke:var(--accent)}.l1,.l3{stroke:var(--soft)}
.line.l2,.line.l3{stroke-dasharray:5 4}
.reference{fill:none;stroke:var(--soft);stroke-width:1px;stroke-dasharray:2 3}
.plots .charts{margin:.8rem 0 1.4rem}.plots h3{margin-top:2.2rem}.plots h4{font-size:.92rem;margin:1.1rem 0 .1rem}
.plots .heat tbody td{min-width:3.2rem;height:1.7rem}.plots .heat tbody th{white-space:nowrap}
.plots .models{max-width:46rem}
.dot{stroke:none}.dot.l0,.dot.l2,.chart .end.l0,.chart .end.l2{fill:var(--accent)}
.dot.l1,.dot.l3,.chart .end.l1,.chart .end.l3{fill:var(--soft)}
.end{stroke:none}
.next li{margin-bottom:1.1rem}
pre{margin:.3rem 0 0;background:var(--panel);border-radius:.4rem;padding:.65rem .9rem;overflow-x:auto}
pre,code{font:.9rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{user-select:all;-webkit-user-select:all}
pre::before{content:"$ ";color:var(--soft)}
footer{padding-top:2.5rem;padding-bottom:3rem;color:var(--soft);font-size:.88rem}
@media screen and (max-width:46rem){
main,header,footer{padding-left:1.1rem;padding-right:1.1rem}
header{padding-top:1.75rem}h1{font-size:1.65rem}
main>section{margin-top:2rem;padding-top:1.75rem}
.tiles{grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem}
.tiles li{padding:.85rem .9rem}.big{font-size:1.8rem}
.strip{grid-template-columns:repeat(3,minmax(0,1fr));gap:.9rem .7rem}.plate img{width:5rem;height:5rem}
.results,.results tbody,.results tr,.results th,.results td{display:block;width:auto;min-width:0;text-align:left}
.results thead{display:none}
.results tr{padding:.7rem 0;border-bottom:1px solid var(--line)}
.results th,.results td,.results th:first-child{border:0;padding:.1rem 0;min-width:0}
.results .bar-cell{width:auto;padding:.35rem 0 .3rem}.results .bar-cell:empty,.results .none{display:none}
.results td[data-label]:not(.none){display:flex;justify-content:space-between;gap:1rem}
.results td::before{content:attr(data-label);color:var(--soft);font-weight:400;white-space:normal}
.stack thead{display:none}
.stack,.stack tbody,.stack tr,.stack th,.stack td{display:block;width:auto;min-width:0}
.models.stack tr{padding:.5rem 0;border-bottom:1px solid var(--line)}.models.stack tr.more{border:0;padding-bottom:0}
.models.stack th,.models.stack td{border:0;padding:.1rem 0;text-align:left;min-width:0}
.models.stack .plot{width:100%}.models th,.models td{padding:.3rem .5rem}.models th:first-child{min-width:7rem}
.terms{grid-template-columns:1fr;gap:0}.terms dd{margin-bottom:.6rem}
.facts{grid-template-columns:repeat(auto-fill,minmax(9rem,1fr))}
.charts{grid-template-columns:1fr}.grid{grid-template-columns:1fr}
.heat tbody td,.large .heat tbody td{min-width:2.1rem}
.heat tbody th{position:sticky;left:0;background:var(--paper);max-width:7.5rem;padding-left:0}
.heat{font-size:.78rem}.heat th,.heat .corner{padding:.2rem .3rem}.heat tbody th{min-width:4rem}
.heat .corner{white-space:normal;overflow-wrap:normal}
}
@media print{
@page{margin:14mm}
body{font-size:9.5pt}header{padding-top:0}main,header,footer{max-width:none;padding-left:0;padding-right:0}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
nav{display:none}main>section{margin-top:1.5rem;padding-top:1.25rem}
.tiles{grid-template-columns:repeat(4,minmax(0,1fr));gap:.6rem}.big{font-size:1.6rem}
.grid{grid-template-columns:repeat(3,minmax(0,1fr))}.charts{grid-template-columns:repeat(2,minmax(0,1fr))}
.card,.tiles li,.strip li,.chart-box,.confusion,.next li,tr{break-inside:avoid}
h2,h3,.intro{break-after:avoid}
.wide{overflow:visible}pre{white-space:pre-wrap}
.results{font-size:.8rem}.results th,.results td{padding:.3rem .4rem}.results thead th,.results thead td{min-width:0}
.results th:first-child{min-width:0}.results .bar-cell{min-width:4rem;width:16%}
}
"""

# Opacity and text of each shade of a heat map, chosen so that the contrast is above 4.5 to 1 on light and dark paper.
SHADES = [(alpha, "--ink") for alpha in (0.08, 0.17, 0.26, 0.35, 0.44, 0.52)]
SHADES += [(0.67, "--mid"), (0.71, "--mid"), (0.87, "--on"), (1, "--on")]
HEAT = "".join(
    f".heat .h{level}{{background:rgb(var(--rgb)/{alpha});color:var({text})}}\n"
    for level, (alpha, text) in enumerate(SHADES, start=1)
)

CSS = BASE.replace("%DARK%", DARK) + HEAT
