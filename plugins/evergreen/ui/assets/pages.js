// Sorting, filtering, parts that come later, the timeline. Everything works without it but these.
(() => {

  // The frame may not open windows nor leave Airflow: a link to its pages is followed by itself.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-airflow-page]");
    if (!link || window.parent === window || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const there = window.parent.document.createElement("a");
    there.href = link.href;
    window.parent.document.body.append(there);
    there.click();
    there.remove();
  });

  const fetched = async (url) => {
    const answer = await fetch(url, { credentials: "same-origin" });
    if (!answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      throw new Error(page.querySelector("[role=alert]")?.textContent ?? `status ${answer.status}`);
    }
    return answer;
  };
  const failed = (place, error) => {
    const note = document.createElement("p");
    note.className = "note bad";
    note.setAttribute("role", "alert");
    note.textContent = `This part can't be shown: ${error.message}`;
    place.replaceChildren(note);
  };

  for (const place of document.querySelectorAll("[data-part]")) {
    fetched(place.dataset.part)
      .then((answer) => answer.text())
      .then((html) => {
        place.innerHTML = html; // escaped by the server; no script in it runs
      })
      .catch((error) => failed(place, error));
  }

  const table = document.querySelector("table.sortable");
  if (table) overview(table);
  const plot = document.getElementById("timeline");
  if (plot) {
    fetched(plot.dataset.src)
      .then((answer) => answer.json())
      .then((found) => {
        timeline(plot, found);
        document.addEventListener("themed", () => timeline(plot, found));
      })
      .catch((error) => failed(plot, error));
  }

  function overview(table) {
    const rows = [...table.tBodies[0].rows];
    const search = document.getElementById("search");
    const boxes = [...document.querySelectorAll("input[name=health]")];
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const healths = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
      let shown = 0;
      for (const row of rows) {
        const fits =
          healths.has(row.dataset.health) && words.every((word) => texts.get(row).includes(word));
        row.hidden = !fits;
        shown += fits;
      }
      document.getElementById("count").textContent = `${shown} of ${rows.length} shown`;
      document.getElementById("nothing").hidden = shown > 0;
    };
    search.addEventListener("input", filter);
    boxes.forEach((box) => box.addEventListener("change", filter));
    document.getElementById("clear").addEventListener("click", () => {
      search.value = "";
      boxes.forEach((box) => (box.checked = true));
      filter();
      search.focus();
    });
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      cell.querySelector("button").addEventListener("click", () => {
        const down = cell.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.sort;
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === y) return 0;
          if (x === "" || y === "") return x === "" ? 1 : -1; // what isn't known comes last
          const order =
            x !== "" && y !== "" && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y);
          return down ? -order : order;
        };
        rows.sort(compare);
        table.tBodies[0].append(...rows);
      });
    });
    filter();
  }

  function timeline(place, found) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const safe = (text) =>
      String(text ?? "").replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
    const measured = found.points.filter((p) => p.kind === "performance");
    const drift = found.points.filter((p) => p.kind === "drift" && p.share !== null);
    const traces = [];
    const band = (name, key, fill, line) => {
      const points = measured.filter((p) => p[key]);
      if (!points.length) return;
      const x = points.map((p) => p.end);
      traces.push(
        { x, y: points.map((p) => p[key].high), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: name },
        { x, y: points.map((p) => p[key].low), line: { width: 0 }, mode: "lines", fill: "tonexty", fillcolor: fill, hoverinfo: "skip", showlegend: false, legendgroup: name },
        { x, y: points.map((p) => p[key].value), name: `${found.metric} ${name}`, mode: "lines+markers", line: { color: line }, legendgroup: name, text: points.map((p) => safe(`${p.window}, version ${p.version}`)), hovertemplate: "%{text}<br>%{y:.4f}" },
      );
    };
    band("realised", "realised", colour("band-realised"), colour("line-realised"));
    band("estimated", "estimated", colour("band-estimated"), colour("line-estimated"));
    if (drift.length) {
      traces.push({ x: drift.map((p) => p.end), y: drift.map((p) => p.share), name: "drifted inputs", type: "bar", yaxis: "y2", marker: { color: drift.map((p) => colour(p.violates.length ? "bad" : "line-drift")) }, text: drift.map((p) => safe(p.window)), textposition: "none", hovertemplate: "%{text}<br>%{y:.0%}" });
    }
    const marks = { retrain: "triangle-up", suppress: "circle", investigate: "x", rollback: "triangle-left" };
    const decisions = found.decisions;
    if (decisions.length) {
      traces.push({ x: decisions.map((d) => d.at), y: decisions.map((d) => d.action), name: "decisions", mode: "markers", yaxis: "y3", marker: { symbol: decisions.map((d) => marks[d.action] ?? "circle"), size: 9, color: decisions.map((d) => colour({ retrain: "good", suppress: "quiet", investigate: "bad", rollback: "warn" }[d.action] ?? "quiet")) }, text: decisions.map((d) => safe(`${d.action} ${d.cause ?? ""}`)), hovertemplate: "%{text}<br>%{x}" });
    }
    if (!traces.length) {
      place.replaceChildren(Object.assign(document.createElement("p"), { className: "quiet", textContent: "Nothing has happened yet." }));
      return;
    }
    const ink = colour("ink");
    const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
    const lines = found.promotions.map((p) => ({ type: "line", x0: p.at, x1: p.at, yref: "paper", y0: 0, y1: 1, line: { color: colour(p.kind === "rollback" ? "bad" : "good"), width: 1, dash: "dot" } }));
    const names = found.promotions.slice(-40).map((p) => ({ x: p.at, yref: "paper", y: 1, yanchor: "bottom", text: safe(`${p.kind === "rollback" ? "↩" : "v"}${p.version}`), showarrow: false, font: { size: 10, color: ink } }));
    place.replaceChildren();
    window.Plotly.newPlot(
      place,
      traces,
      {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "inherit" },
        margin: { t: 24, r: 8, b: 32, l: 8 }, height: 460, hovermode: "x", shapes: lines, annotations: names,
        legend: { orientation: "h", y: -0.12 }, xaxis: { ...axis, type: "date", anchor: "y3" },
        yaxis: { ...axis, domain: [0.5, 1] }, yaxis2: { ...axis, domain: [0.22, 0.44], tickformat: ".0%", rangemode: "tozero" },
        yaxis3: { ...axis, domain: [0, 0.16], type: "category", dtick: 1, categoryorder: "array", categoryarray: ["suppress", "retrain", "rollback", "investigate"] },
      },
      { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false },
    );
  }
})();
