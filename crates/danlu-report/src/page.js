"use strict";
// Curves: a readout under the pointer or the arrow keys, and a legend that hides curves.
for (const area of document.querySelectorAll(".area")) {
  const { x0, x1, y0, y1, log, x: xName, title } = area.dataset;
  const flat = (v) => (log === "true" ? Math.log(v) : v);
  const atX = (v) => (v - x0) / (x1 - x0);
  const atY = (v) => (flat(v) - flat(+y0)) / (flat(+y1) - flat(+y0));
  const word = (v) => (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e9)
    ? v.toExponential(2) : Number(v.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 }));
  const curves = [...area.querySelectorAll("path[data-name]")].map((path) => ({
    path,
    points: path.dataset.values.split(";").map((p) => p.split(" ").map(Number)).filter((p) => isFinite(p[1])),
  }));
  const make = (name, parent) => {
    const made = document.createElement(name === "input" ? "input" : "div");
    if (name !== "input") made.className = name;
    return parent.appendChild(made);
  };
  const marks = [];
  const clear = () => marks.splice(0).forEach((mark) => mark.remove());
  const show = (fraction) => {
    clear();
    const wanted = +x0 + fraction * (x1 - x0);
    const near = curves.filter((c) => !c.path.hasAttribute("hidden") && c.points.length).map((c) => ({
      path: c.path,
      point: c.points.reduce((a, b) => (Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a)),
    }));
    if (!near.length) return "";
    const x = near.map((n) => n.point[0]).reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
    const cursor = make("cursor", area);
    cursor.style.left = 100 * atX(x) + "%";
    const tip = make("tip", area);
    tip.style[atX(x) < 0.5 ? "left" : "right"] = `calc(${100 * (atX(x) < 0.5 ? atX(x) : 1 - atX(x))}% + .6rem)`;
    make("at", tip).textContent = `${xName} ${word(x)}`;
    marks.push(cursor, tip);
    const said = [`${xName} ${word(x)}`];
    for (const { path, point } of near) {
      const line = make("line", tip);
      const key = line.appendChild(document.createElement("i"));
      key.className = "key " + path.getAttribute("class");
      line.append(path.dataset.name);
      // A curve without a point near the cursor tells where its value is from.
      const far = Math.abs(point[0] - x) > 0.02 * (x1 - x0);
      const from = far && !path.classList.contains("dashed") ? ` (${xName} ${word(point[0])})` : "";
      line.appendChild(document.createElement("b")).textContent = word(point[1]) + from;
      said.push(`${path.dataset.name} ${word(point[1])}${from}`);
      if (far) continue;
      const dot = make("dot " + path.getAttribute("class"), area);
      dot.style.left = 100 * atX(point[0]) + "%";
      dot.style.top = 100 - 100 * atY(point[1]) + "%";
      marks.push(dot);
    }
    return said.join(", ");
  };
  const scrub = make("input", area);
  Object.assign(scrub, { type: "range", min: 0, max: 100, value: 100 });
  scrub.setAttribute("aria-label", `Read values of ${title}`);
  const read = () => scrub.setAttribute("aria-valuetext", show(scrub.value / 100));
  scrub.addEventListener("input", read);
  scrub.addEventListener("focus", () => scrub.matches(":focus-visible") && read());
  scrub.addEventListener("blur", clear);
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    show(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
  });
  area.addEventListener("pointerleave", clear);
  for (const button of area.closest("figure").querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      const { series } = button.dataset;
      const band = area.querySelectorAll(`[data-band="${series}"]`);
      for (const path of [curves[series].path, ...band]) path.toggleAttribute("hidden", !shown);
    });
  }
}

// Galleries: keep all cards, the hits or the misses.
for (const filter of document.querySelectorAll(".filter")) {
  const buttons = [...filter.children];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      const { keep } = button.dataset;
      for (const card of filter.parentElement.querySelectorAll(".cards > li")) {
        card.hidden = keep !== "all" && card.dataset.verdict !== keep;
      }
    });
  }
}

// Sounds: a small button in place of the browser's player; one sound at a time.
let playing = null;
for (const sound of document.querySelectorAll("audio")) {
  const name = sound.getAttribute("aria-label");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "play";
  const tell = (on) => {
    button.classList.toggle("on", on);
    button.setAttribute("aria-label", `${on ? "Stop" : "Play"} ${name}`);
  };
  tell(false);
  const stop = () => {
    sound.pause();
    sound.currentTime = 0;
    tell(false);
    if (playing === stop) playing = null;
  };
  button.addEventListener("click", () => {
    if (playing === stop) return stop();
    if (playing) playing();
    playing = stop;
    tell(true);
    sound.play().catch(stop);
  });
  sound.addEventListener("ended", stop);
  sound.removeAttribute("controls");
  sound.before(button);
}
