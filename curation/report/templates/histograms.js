/* Histograms, drawn by Plotly when they scroll into view.
   Margins and range are fixed: threshold handles lie over them. */

const MARGIN = { l: 34, r: 10, t: 8, b: 28 },
  EDGE_SHARE = 0.04;
const colour = name =>
  getComputedStyle(document.documentElement)
    .getPropertyValue("--" + name)
    .trim();

function drawHistogram(area) {
  const name = area.dataset.plot,
    h = DATA.histograms[name],
    width = h.edges[1] - h.edges[0],
    pad = (h.edges.at(-1) - h.edges[0]) * EDGE_SHARE;
  const x = h.edges.slice(1).map(edge => edge - width / 2),
    [passing, failing] = recount(name);
  const bar = (y, label, ink) => ({
    type: "bar",
    x,
    y,
    width,
    name: label,
    marker: { color: ink },
    hovertemplate: "%{y:,.0f} " + label + " at %{x:.3~g}<extra></extra>",
  });
  const line = value => ({
    type: "line",
    x0: value,
    x1: value,
    y0: 0,
    y1: 1,
    yref: "paper",
    line: { color: colour("soft"), width: 1.5, dash: "dot" },
  });
  const axis = {
    color: colour("soft"),
    gridcolor: colour("line"),
    zeroline: false,
    fixedrange: true,
    tickfont: { size: 11 },
  };
  Plotly.react(
    area,
    [bar(passing, "passing", colour("kept")), bar(failing, "failing", colour("rejected"))],
    {
      barmode: "stack",
      bargap: 0.04,
      showlegend: false,
      margin: MARGIN,
      dragmode: false,
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      font: { color: colour("soft") },
      shapes: h.lines.map(line),
      yaxis: { ...axis, tickformat: "~s", nticks: 4, rangemode: "tozero" },
      xaxis: {
        ...axis,
        showgrid: false,
        ticks: "outside",
        ticklen: 5,
        tickcolor: "transparent",
        nticks: 6,
        range: [h.edges[0] - pad, h.edges.at(-1) + pad],
      },
    },
    { displayModeBar: false, responsive: true },
  );
}

function redraw(name) {
  const area = document.querySelector(`[data-plot="${name}"].js-plotly-plot`);
  if (area) Plotly.restyle(area, { y: recount(name) }, [0, 1]);
}

/* the library is stored compressed: half the page's size */
async function loadPlotly() {
  const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), c => c.charCodeAt(0));
  const script = document.createElement("script");
  script.textContent = await new Response(
    new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")),
  ).text();
  document.head.append(script);
}

async function drawHistograms() {
  await loadPlotly();
  const areas = [...document.querySelectorAll("[data-plot]")];
  const observer = new IntersectionObserver(
    entries =>
      entries.forEach(entry => {
        if (entry.isIntersecting) {
          observer.unobserve(entry.target);
          drawHistogram(entry.target);
        }
      }),
    { rootMargin: "400px" },
  );
  areas.forEach(area => observer.observe(area));
  addEventListener("beforeprint", () => areas.filter(area => area.offsetParent).forEach(drawHistogram));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    document.querySelectorAll(".js-plotly-plot").forEach(drawHistogram),
  );
  document.documentElement.dataset.ready = "yes";
}
