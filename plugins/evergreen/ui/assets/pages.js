// Sorting, filtering, parts that come later, the timeline. Everything works without it but these.
(() => {

  // The frame may not open windows nor leave Airflow: a link to its pages, or out of it into a tab of
  // its own, is followed by Airflow's page.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-airflow-page], a[data-outside]");
    if (!link || window.parent === window || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const there = window.parent.document.createElement("a");
    Object.assign(there, { href: link.href, target: link.target, rel: link.rel });
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

  const escaped = (text) =>
    String(text ?? "").replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();

  function timeline(place, found) {
    const traces = [...performance(found), ...drift(found), ...decisions(found)];
    if (!traces.length) {
      place.replaceChildren(Object.assign(document.createElement("p"), { className: "quiet", textContent: "Nothing has happened yet." }));
      return;
    }
    const ink = colour("ink");
    const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
    const said = new Set(); // what the legend has named
    const lines = found.promotions.map((p) => {
      const back = p.kind === "rollback";
      const named = { name: back ? "rollback carried out" : "version went live", showlegend: !said.has(back) };
      said.add(back);
      return { ...named, type: "line", x0: p.at, x1: p.at, yref: "paper", y0: 0, y1: 1, line: { color: colour(back ? "bad" : "good"), width: 1, dash: "dot" } };
    });
    const names = found.promotions.slice(-40).map((p) => ({ x: p.at, yref: "paper", y: 1, yanchor: "bottom", text: escaped(`${p.kind === "rollback" ? "↩" : "v"}${p.version}`), showarrow: false, font: { size: 10, color: ink } }));
    place.replaceChildren();
    window.Plotly.newPlot(
      place,
      traces,
      {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "inherit" },
        margin: { t: 24, r: 8, b: 32, l: 8 }, height: 600, hovermode: "x", barmode: "overlay", shapes: lines, annotations: names,
        legend: { orientation: "h", y: -0.16 }, xaxis: { ...axis, type: "date", anchor: "y3", title: { text: "data time (UTC)" } },
        yaxis: { ...axis, domain: [0.5, 1], title: { text: escaped(found.metric ?? "metric") } },
        yaxis2: { ...axis, domain: [0.22, 0.44], tickformat: ".0%", rangemode: "tozero", title: { text: "drifted inputs" } },
        yaxis3: { ...axis, domain: [0, 0.16], type: "category", dtick: 1, categoryorder: "array", categoryarray: ["suppress", "retrain", "rollback", "investigate"], title: { text: "decision" } },
      },
      { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false },
    );
  }

  // Each look is a trace of its own, so that the legend names it.
  function performance(found) {
    const traces = [];
    const measured = found.points.filter((p) => p.kind === "performance");
    const about = (p) => escaped(`${p.window}, version ${p.version}`);
    const band = (name) => {
      const points = measured.filter((p) => p[name]);
      if (!points.length) return;
      const x = points.map((p) => p.end);
      const edge = (side) => ({ x, y: points.map((p) => p[name][side]), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: name });
      traces.push(
        edge("high"),
        { ...edge("low"), fill: "tonexty", fillcolor: colour(`band-${name}`) },
        { x, y: points.map((p) => p[name].value), name: `${escaped(found.metric)} ${name}`, mode: "lines+markers", line: { color: colour(`line-${name}`) }, legendgroup: name, text: points.map(about), hovertemplate: "%{text}<br>%{y:.4f}" },
      );
    };
    band("realised");
    band("estimated");
    const known = measured.filter((p) => p.reference !== null);
    if (known.length) traces.push({ x: known.map((p) => p.end), y: known.map((p) => p.reference), name: "at promotion", mode: "lines", line: { color: colour("quiet"), dash: "dash", shape: "hvh", width: 1 }, hovertemplate: "at promotion %{y:.4f}<extra></extra>" });
    const ring = (name, points, marker) => {
      const at = points.map((p) => [p, p.basis === "estimated" || !p.realised ? p.estimated : p.realised]).filter(([, value]) => value);
      if (at.length) traces.push({ x: at.map(([p]) => p.end), y: at.map(([, value]) => value.value), name, mode: "markers", marker, hoverinfo: "skip" });
    };
    ring("performance beyond its bound", measured.filter((p) => p.violates.includes("performance")), { symbol: "circle-open", size: 15, color: colour("bad"), line: { width: 2 } });
    ring("too few labels to judge", measured.filter((p) => !p.judged), { symbol: "circle-x-open", size: 12, color: colour("quiet") });
    return traces;
  }

  function drift(found) {
    const measured = found.points.filter((p) => p.kind === "drift" && p.share !== null);
    if (!measured.length) return [];
    const gaps = measured.slice(1).map((p, i) => new Date(p.end) - new Date(measured[i].end)).filter((gap) => gap > 0);
    const width = 0.7 * (gaps.sort((a, b) => a - b)[0] ?? 864e5);
    const bars = (name, points, marker) => points.length && { x: points.map((p) => p.end), y: points.map((p) => p.share), width, name, type: "bar", yaxis: "y2", marker, text: points.map((p) => escaped(`${p.window}, version ${p.version}${p.violates.length ? `: ${p.violates.join(", ")}` : ""}`)), textposition: "none", hovertemplate: "%{text}<br>%{y:.0%}" };
    const judged = measured.filter((p) => p.judged);
    const bounds = measured.filter((p) => p.bound !== null);
    return [
      bars("drift within bounds", judged.filter((p) => !p.violates.length), { color: colour("line-drift") }),
      bars("drift beyond a bound", judged.filter((p) => p.violates.length), { color: colour("bad") }),
      bars("too few rows to judge drift", measured.filter((p) => !p.judged), { color: colour("line-drift"), pattern: { shape: "/" } }),
      bounds.length && { x: bounds.map((p) => p.end), y: bounds.map((p) => p.bound), name: "most inputs that may drift", mode: "lines", yaxis: "y2", line: { color: colour("bad"), dash: "dash", shape: "hvh", width: 1 }, hovertemplate: "at most %{y:.0%}<extra></extra>" },
    ].filter(Boolean);
  }

  function decisions(found) {
    const retrain = (d) => d.action === "retrain";
    const looks = [
      ["retrain, promoted", (d) => retrain(d) && d.outcome === "promoted", "triangle-up", "good"],
      ["retrain, not promoted", (d) => retrain(d) && d.outcome && d.outcome !== "promoted", "triangle-down-open", "bad"],
      ["retrain, no outcome yet", (d) => retrain(d) && !d.outcome, "triangle-up-open", "quiet"],
      ["suppress", (d) => d.action === "suppress", "circle", "quiet"],
      ["investigate", (d) => d.action === "investigate", "x", "bad"],
      ["rollback decided", (d) => d.action === "rollback", "triangle-left", "warn"],
    ];
    return looks
      .map(([name, fits, symbol, ink]) => [name, found.decisions.filter(fits), { symbol, size: 10, color: colour(ink) }])
      .filter(([, some]) => some.length)
      .map(([name, some, marker]) => ({ x: some.map((d) => d.at), y: some.map((d) => d.action), name, mode: "markers", yaxis: "y3", marker, text: some.map((d) => escaped([d.action, d.cause, d.outcome].filter(Boolean).join(", ") + `; recorded ${d.recorded.slice(0, 16).replace("T", " ")}`)), hovertemplate: "%{text}<br>%{x}<extra></extra>" }));
  }
})();
