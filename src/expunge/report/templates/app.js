"use strict";
// Draws the figures of this page from the specifications in it, in the colours of its style sheet.
(() => {
  const ROLES = ["base", "target", "unlearned", "retain", "mark", "series"];
  const specs = [...document.querySelectorAll('script[type="application/json"][data-plot]')].map(
    (script) => ({
      target: document.getElementById(script.dataset.plot),
      text: script.textContent,
    })
  );

  const style = () => getComputedStyle(document.documentElement);

  function coloured(text) {
    const { data, layout } = JSON.parse(text);
    const css = style();
    const variable = (name) => css.getPropertyValue(name).trim();
    const muted = variable("--muted");
    const line = variable("--line");
    for (const trace of data) {
      const role = trace.meta && trace.meta.role;
      const colour = variable("--role-" + (ROLES.includes(role) ? role : "unlearned"));
      if (trace.line) trace.line.color = colour;
      trace.marker = { ...trace.marker, color: colour };
      if (trace.error_x) trace.error_x.color = colour;
      if (trace.error_y) trace.error_y.color = colour;
      trace.textfont = { color: variable("--text") };
    }
    for (const [name, axis] of Object.entries(layout)) {
      if (/^[xy]axis\d*$/.test(name)) {
        Object.assign(axis, { gridcolor: line, linecolor: variable("--strong-line"), tickcolor: line });
      }
    }
    for (const shape of layout.shapes || []) shape.line.color = muted;
    for (const note of layout.annotations || []) {
      if (note.bgcolor) Object.assign(note, { bgcolor: variable("--paper"), font: { color: variable("--text") } });
    }
    return {
      data,
      layout: {
        margin: { l: 8, r: 20, t: 34, b: 8 },
        hovermode: "closest",
        dragmode: false,
        ...layout,
        autosize: true,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: variable("--sans"), size: 12.5, color: muted },
        hoverlabel: {
          bgcolor: variable("--raised"),
          bordercolor: variable("--strong-line"),
          font: { family: variable("--sans"), color: variable("--text") },
          align: "left",
        },
      },
    };
  }

  const CONFIG = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["toImage"]],
    showTips: false,
  };

  function draw(width) {
    for (const { target, text } of specs) {
      const { data, layout } = coloured(text);
      if (width) Object.assign(layout, { width, autosize: false });
      Plotly.react(target, data, layout, CONFIG);
    }
  }

  // Paper has no drawers to open.
  const closed = () => document.querySelectorAll("details:not([open])");

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  window.addEventListener("beforeprint", () => {
    document.documentElement.classList.add("on-paper");
    for (const drawer of closed()) drawer.open = drawer.dataset.opened = true;
    draw(680);
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.classList.remove("on-paper");
    for (const drawer of document.querySelectorAll("details[data-opened]")) {
      drawer.open = false;
      delete drawer.dataset.opened;
    }
    draw();
  });
})();
