"use strict";
// The viewer: one plane for an image, three for a volume, with a common place.
(async () => {
  const at = (id) => document.getElementById(id);
  if (!at("viewer")) return;
  const { unit, views } = JSON.parse(at("view-data").textContent);
  if (typeof DecompressionStream === "undefined") {
    at("viewer-error").textContent = "The images need a browser of 2023 or newer; everything else on this page works.";
    at("viewer-error").hidden = false;
    return;
  }
  const PLANES = [[0, 1, 2], [0, 2, 1], [1, 2, 0]];
  const OPPOSITE = { R: "L", L: "R", A: "P", P: "A", S: "I", I: "S" };
  const NAMES = { S: "axial", I: "axial", A: "coronal", P: "coronal", R: "sagittal", L: "sagittal" };
  const state = { picture: "image", prediction: "none", level: 0, window: 1, place: [] };
  let view = null;
  let arrays = {};
  let loading = 0;
  let announcing = 0;

  const sizes = () => view.shape.slice(1);
  const planes = () => (sizes().length === 3 ? PLANES : [[0, 1]]);
  const chosenRun = () => view.runs[Number(at("view-run").value)] || null;
  const original = (axis) => view.origin[axis] + state.place[axis] * view.stride;
  // Index in the image as it is stored, along the axis of it that this one shows.
  const inFile = (axis) => {
    const [, flipped, size] = view.stored.find(([shown]) => shown === axis);
    return flipped ? size - 1 - original(axis) : original(axis);
  };
  const planeName = (n) =>
    n === undefined ? "image" : view.orientation ? NAMES[view.orientation[n]] : `slices along axis ${n + 1}`;
  const className = (k) => view.classes[k] ?? (k === 0 ? "background" : `class ${k}`);

  const load = async () => {
    const mine = ++loading;
    const run = chosenRun();
    const wanted = {
      image: view.image,
      change: run && run.difference,
      label: view.label,
      clean: view.clean,
      attacked: run && run.prediction,
    };
    const kept = new Map(Object.values(arrays).filter(Boolean).map((array) => [array.payload, array]));
    const found = {};
    for (const [name, described] of Object.entries(wanted)) {
      if (!described || described.payload === undefined) continue;
      found[name] = kept.get(described.payload) || { ...(await Slices.decode(described)), payload: described.payload };
    }
    if (mine !== loading) return false;
    arrays = found;
    return true;
  };

  const shownPrediction = () =>
    state.prediction === "clean" ? view.clean : state.prediction === "attacked" ? chosenRun()?.prediction : null;

  const drawBoxes = (context, cut, shown, style) => {
    if (!shown || shown.kind !== "boxes") return;
    const n = sizes().length;
    const { width, height } = context.canvas;
    const across = (axis, value, size, length) => (((value - view.origin[axis]) / view.stride) * length) / size;
    shown.boxes.forEach((box, i) => {
      if (cut.n !== undefined && !(box[cut.n] <= original(cut.n) && original(cut.n) < box[n + cut.n])) return;
      const x = [box[cut.h], box[n + cut.h]].map((value) => across(cut.h, value, cut.width, width));
      let y = [box[cut.v], box[n + cut.v]].map((value) => across(cut.v, value, cut.height, height));
      if (cut.flipped) y = [height - y[1], height - y[0]];
      const name = [style.prefix, shown.labels[i], shown.scores[i] === undefined ? "" : shown.scores[i].toFixed(2)];
      const text = name.filter(Boolean).join(" ");
      for (const [colour, thickness] of [["#000", 4], [style.colour, 2]]) {
        context.strokeStyle = colour;
        context.lineWidth = thickness * style.ratio;
        context.setLineDash(style.dash.map((length) => length * style.ratio));
        context.strokeRect(x[0], y[0], x[1] - x[0], y[1] - y[0]);
      }
      context.setLineDash([]);
      context.font = `${12 * style.ratio}px system-ui, sans-serif`;
      const line = style.below ? Math.min(height - 4 * style.ratio, y[1] + 14 * style.ratio) : Math.max(12 * style.ratio, y[0] - 4 * style.ratio);
      context.lineWidth = 3 * style.ratio;
      context.strokeStyle = "#000";
      context.strokeText(text, x[0], line);
      context.fillStyle = style.colour;
      context.fillText(text, x[0], line);
    });
  };

  const draw = (i) => {
    const axes = planes()[i];
    const cut = Slices.plane(view.shape, state.place, axes);
    const canvas = at(`plane-${i}-canvas`);
    const ratio = window.devicePixelRatio || 1;
    const aspect = (cut.height * view.spacing[cut.v]) / (cut.width * view.spacing[cut.h]);
    const wide = Math.max(40, Math.min(at(`plane-${i}`).clientWidth, Math.max(240, 0.62 * window.innerHeight) / aspect));
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.max(1, Math.round(wide * aspect * ratio));
    canvas.style.width = `${wide}px`;
    const shown = shownPrediction();
    const prediction = shown?.kind === "map" ? (state.prediction === "clean" ? arrays.clean : arrays.attacked) : null;
    const source = document.createElement("canvas");
    [source.width, source.height] = [cut.width, cut.height];
    source.getContext("2d").putImageData(Slices.paint(cut, { ...arrays, prediction }, state), 0, 0);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(source, 0, 0, canvas.width, canvas.height);
    if (at("view-label").checked) {
      if (arrays.label) {
        const path = Slices.outline(cut, arrays.label, canvas.width, canvas.height);
        for (const [colour, width] of [["#000", 3], ["#fff", 1.4]]) {
          context.strokeStyle = colour;
          context.lineWidth = width * ratio;
          context.stroke(path);
        }
      }
      drawBoxes(context, cut, view.label, { colour: "#fff", dash: [6, 4], prefix: "label", below: true, ratio });
    }
    drawBoxes(context, cut, shown, { colour: "#ffc23d", dash: [], prefix: "", below: false, ratio });
    const centre = (axis, size, length) => ((state.place[axis] + 0.5) * length) / size;
    if (at("view-cross").checked) {
      const x = centre(cut.h, cut.width, canvas.width);
      const y = cut.flipped ? canvas.height - centre(cut.v, cut.height, canvas.height) : centre(cut.v, cut.height, canvas.height);
      context.strokeStyle = "rgba(255, 214, 64, 0.75)";
      context.lineWidth = ratio;
      context.beginPath();
      for (const [x0, y0, x1, y1] of [[0, y, x - 6 * ratio, y], [x + 6 * ratio, y, canvas.width, y], [x, 0, x, y - 6 * ratio], [x, y + 6 * ratio, x, canvas.height]]) {
        context.moveTo(x0, y0);
        context.lineTo(x1, y1);
      }
      context.stroke();
    }
    if (view.orientation) {
      const [right, end] = [view.orientation[cut.h], view.orientation[cut.v]];
      const [top, bottom] = cut.flipped ? [end, OPPOSITE[end]] : [OPPOSITE[end], end];
      const letters = [[OPPOSITE[right], 0.02, 0.5, "left"], [right, 0.98, 0.5, "right"], [top, 0.5, 0.04, "center"], [bottom, 0.5, 0.96, "center"]];
      context.font = `600 ${12 * ratio}px system-ui, sans-serif`;
      context.textBaseline = "middle";
      for (const [letter, x, y, align] of letters) {
        context.textAlign = "center";
        const side = 16 * ratio;
        const centre = { left: side / 2, right: canvas.width - side / 2, center: x * canvas.width }[align];
        context.fillStyle = "rgba(0, 0, 0, 0.6)";
        context.fillRect(centre - side / 2, y * canvas.height - side / 2, side, side);
        context.fillStyle = "#fff";
        context.fillText(letter, centre, y * canvas.height);
      }
    }
    const picture = document.querySelector('input[name="view-picture"]:checked').parentElement.textContent.trim();
    const where = cut.n === undefined ? "" : `, slice ${inFile(cut.n)}`;
    canvas.setAttribute("aria-label", `${view.case}, ${planeName(cut.n)}${where}: picture ${picture}`);
    if (cut.n !== undefined) {
      const slider = at(`plane-${i}-slice`);
      slider.value = state.place[cut.n];
      slider.setAttribute("aria-valuetext", `slice ${inFile(cut.n)} of ${view.full[cut.n]}`);
      at(`plane-${i}-number`).textContent = `${inFile(cut.n)} of ${view.full[cut.n]}`;
    }
  };

  const entries = (list, pairs) =>
    list.replaceChildren(
      ...pairs.map(([name, text]) => {
        const group = document.createElement("div");
        group.append(Object.assign(document.createElement("dt"), { textContent: name }));
        group.append(Object.assign(document.createElement("dd"), { textContent: text }));
        return group;
      }),
    );

  const values = () => {
    const [, ...own] = view.shape;
    const index = own.reduce((sum, size, axis) => sum * size + state.place[axis], 0);
    const volume = own.reduce((product, size) => product * size, 1);
    const channels = [...Array(view.shape[0]).keys()];
    const said = (read) => `${channels.map((c) => shownNumber(read(index + c * volume))).join(", ")} ${unit}`;
    const pairs = [["position", view.stored.map(([axis]) => inFile(axis)).join(", ")]];
    pairs.push(["without an attack", said((i) => Slices.value(arrays.image, i))]);
    if (arrays.change) {
      pairs.push(["under attack", said((i) => Slices.value(arrays.image, i) + Slices.value(arrays.change, i))]);
      pairs.push(["change", said((i) => Slices.value(arrays.change, i))]);
    }
    for (const [name, array] of [["label", arrays.label], ["prediction without an attack", arrays.clean], ["prediction under attack", arrays.attacked]]) {
      if (array) pairs.push([name, className(array.codes[index])]);
    }
    entries(at("view-values"), pairs);
    clearTimeout(announcing);
    announcing = setTimeout(() => {
      at("view-status").textContent = pairs.map(([name, text]) => `${name}: ${text}`).join("; ");
    }, 700);
  };

  const drawAll = () => {
    if (!arrays.image) return; // another case is being read
    planes().forEach((_, i) => draw(i));
    values();
    at("view-level-value").textContent = shownSize(state.level);
    at("view-window-value").textContent = shownSize(state.window);
    at("view-scale").hidden = !arrays.change;
    if (arrays.change) {
      at("view-scale-low").textContent = shownSize(-arrays.change.most);
      at("view-scale-high").textContent = `+${shownSize(arrays.change.most)}`;
    }
    at("viewer").dataset.place = state.place.join(",");
  };

  let waiting = 0;
  const redraw = () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(drawAll);
  };

  const windowOver = () => {
    const { low, step, codes } = arrays.image;
    let most = 0;
    for (const code of codes) if (code > most) most = code;
    const high = low + step * Math.max(1, most);
    for (const [name, from, value] of [["level", low, (low + high) / 2], ["window", (high - low) / 100, high - low]]) {
      const slider = at(`view-${name}`);
      [slider.min, slider.max, slider.step] = [from, high > from ? (name === "window" ? high - low : high) : from + 1, (high - low) / 200];
      slider.value = value;
      state[name] = value;
    }
  };

  const texts = () => {
    const run = chosenRun();
    const shown = [["label", view.label], ["prediction without an attack", view.clean], ["prediction under attack", run && run.prediction]];
    entries(at("view-texts"), shown.filter(([, own]) => own?.kind === "text").map(([name, own]) => [name, own.text]));
    const drawable = (own) => own && own.kind !== "text";
    at("view-predictions").hidden = !drawable(view.clean) && !view.runs.some((own) => drawable(own.prediction));
    at("view-label-choice").hidden = !drawable(view.label);
    const found = new Set();
    for (const array of [arrays.label, arrays.clean, arrays.attacked]) {
      if (array) array.codes.forEach((code) => code > 0 && found.add(code));
    }
    at("view-classes").replaceChildren(
      ...[...found].sort((a, b) => a - b).map((k) => {
        const item = document.createElement("li");
        const patch = document.createElement("canvas");
        [patch.width, patch.height] = [8, 8];
        patch.setAttribute("aria-hidden", "true");
        const context = patch.getContext("2d");
        context.fillStyle = `rgb(${Slices.classColour(k).join(",")})`;
        context.fillRect(0, 0, 8, 8);
        item.append(patch, className(k));
        return item;
      }),
    );
  };

  const show = async (number, run = null) => {
    view = views[number];
    at("view-case").value = number;
    at("view-run").replaceChildren(...view.runs.map((own, i) => new Option(own.run, i)));
    const wanted = view.runs.findIndex((own) => own.run === run);
    if (wanted >= 0) at("view-run").value = wanted;
    for (const radio of document.querySelectorAll('input[name="view-picture"]')) {
      radio.disabled = view.runs.length === 0 && radio.value !== "image";
      if (radio.disabled && radio.checked) {
        document.querySelector('input[name="view-picture"][value="image"]').checked = true;
        state.picture = "image";
      }
    }
    state.place = [...view.start];
    arrays = {};
    if (!(await load())) return;
    const isVolume = sizes().length === 3;
    at("viewer").hidden = false;
    document.querySelector(".planes").classList.toggle("one", !isVolume);
    at("view-hint").textContent = isVolume
      ? "Click or drag in a picture to move the cross-hair. The scroll wheel, the arrow keys, Page Up and Page Down change the slice of the picture in focus."
      : "Click or drag in the picture, or use the arrow keys, to move the cross-hair.";
    PLANES.forEach((axes, i) => {
      const isShown = isVolume || i === 0;
      at(`plane-${i}`).hidden = !isShown;
      at(`plane-${i}-slice`).hidden = at(`plane-${i}-number`).hidden = !isVolume;
      if (!isShown) return;
      const name = planeName(isVolume ? axes[2] : undefined);
      at(`plane-${i}-title`).textContent = isVolume ? name : view.case;
      at(`plane-${i}-name`).textContent = isVolume ? `Slice, ${name}` : "";
      if (isVolume) at(`plane-${i}-slice`).max = sizes()[axes[2]] - 1;
    });
    at("view-notes").replaceChildren(...view.notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
    windowOver();
    texts();
    drawAll();
  };

  const move = (axis, to) => {
    const place = Math.max(0, Math.min(sizes()[axis] - 1, to));
    if (place === state.place[axis]) return false;
    state.place[axis] = place;
    redraw();
    return true;
  };

  PLANES.forEach((axes, i) => {
    const canvas = at(`plane-${i}-canvas`);
    const [h, v, n] = axes;
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const [, ...own] = view.shape;
      const y = (event.clientY - box.top) / box.height;
      state.place[h] = Math.max(0, Math.min(own[h] - 1, Math.floor(((event.clientX - box.left) / box.width) * own[h])));
      state.place[v] = Math.max(0, Math.min(own[v] - 1, Math.floor((own.length === 3 ? 1 - y : y) * own[v])));
      redraw();
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      point(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons & 1 && point(event));
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (sizes().length === 3 && !event.ctrlKey && move(n, state.place[n] - Math.sign(event.deltaY))) event.preventDefault();
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
      const step = steps[event.key];
      if (step === undefined) return;
      event.preventDefault();
      if (sizes().length === 3) move(n, state.place[n] + step);
      else if (Math.abs(step) === 1 && /Up|Down/.test(event.key)) move(1, state.place[1] - step);
      else if (Math.abs(step) === 1) move(0, state.place[0] + step);
    });
    at(`plane-${i}-slice`).addEventListener("input", (event) => move(n, Number(event.target.value)));
  });
  for (const name of ["level", "window"]) {
    at(`view-${name}`).addEventListener("input", (event) => {
      state[name] = Number(event.target.value);
      redraw();
    });
  }
  for (const name of ["picture", "prediction"]) {
    document.querySelectorAll(`input[name="view-${name}"]`).forEach((radio) =>
      radio.addEventListener("change", () => {
        state[name] = radio.value;
        redraw();
      }),
    );
  }
  for (const id of ["view-label", "view-cross"]) at(id).addEventListener("change", redraw);
  at("view-case").addEventListener("change", () => show(Number(at("view-case").value)));
  at("view-run").addEventListener("change", async () => {
    if (await load()) {
      texts();
      redraw();
    }
  });
  document.addEventListener("show-case", async (event) => {
    await show(event.detail.view, event.detail.run);
    at("images").scrollIntoView();
    at("view-case").focus({ preventScroll: true });
  });
  const bar = at("view-bar").getContext("2d");
  for (let x = 0; x < 256; x++) {
    bar.fillStyle = `rgb(${Slices.changeColour((x - 127.5) / 127.5).map(Math.round).join(",")})`;
    bar.fillRect(x, 0, 1, 1);
  }
  await show(0);
  let width = 0;
  new ResizeObserver(() => {
    const now = document.querySelector(".planes").clientWidth;
    if (now !== width) {
      width = now;
      redraw();
    }
  }).observe(document.querySelector(".planes"));
})();
