"use strict";
// Stored arrays, and slices of them as pixels.
const Slices = (() => {
  const CLASS_COLOURS = JSON.parse(document.getElementById("view-data").textContent).colours.map((colour) =>
    [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)),
  );
  const RAMP = [[8, 64, 129], [67, 147, 195], [247, 247, 247], [214, 96, 77], [128, 10, 30]];
  const classColour = (k) => CLASS_COLOURS[(k - 1) % CLASS_COLOURS.length];

  // Colour of a change, t from -1 (darker, blue) to 1 (brighter, red).
  const changeColour = (t) => {
    const place = (Math.max(-1, Math.min(1, t)) + 1) * 2;
    const i = Math.min(3, Math.floor(place));
    return RAMP[i].map((low, c) => low + (place - i) * (RAMP[i + 1][c] - low));
  };

  const decode = async (array) => {
    const text = atob(document.getElementById(`payload-${array.payload}`).textContent);
    const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    let codes = new Uint8Array(await new Response(stream).arrayBuffer());
    if (array.bits === 4) {
      const both = new Uint8Array(codes.length * 2);
      codes.forEach((code, i) => {
        both[2 * i] = code & 15;
        both[2 * i + 1] = code >> 4;
      });
      codes = both;
    }
    return { codes, low: array.low, step: array.step, most: array.step * ((1 << (array.bits - 1)) - 1) };
  };

  const value = (array, index) => array.low + array.step * array.codes[index];

  // Places of a plane: axes across and along it, and the array index of its pixels.
  const plane = (shape, place, axes) => {
    const [, ...sizes] = shape;
    const strides = sizes.map((_, i) => sizes.slice(i + 1).reduce((product, size) => product * size, 1));
    const [h, v, n] = axes;
    const flipped = sizes.length === 3;
    const base = n === undefined ? 0 : place[n] * strides[n];
    const [width, height] = [sizes[h], sizes[v]];
    const at = (x, y) => base + x * strides[h] + (flipped ? height - 1 - y : y) * strides[v];
    const volume = sizes.reduce((product, size) => product * size, 1);
    return { h, v, n, width, height, flipped, at, volume, channels: shape[0] };
  };

  // Colours of all steps from -most to most, so that painting looks them up.
  const STEPS = 512;
  const CHANGES = Array.from({ length: STEPS + 1 }, (_, i) => changeColour((2 * i) / STEPS - 1));

  const paint = (cut, arrays, state) => {
    const pixels = new ImageData(cut.width, cut.height);
    const out = pixels.data; // clamps to 0 ... 255 by itself
    const { image, change, prediction } = arrays;
    const low = state.level - state.window / 2;
    const scale = 255 / Math.max(state.window, 1e-12);
    const attacked = state.picture === "adversarial" && change;
    for (let y = 0, o = 0; y < cut.height; y++) {
      for (let x = 0; x < cut.width; x++, o += 4) {
        const index = cut.at(x, y);
        if (state.picture === "difference") {
          let largest = 0;
          for (let c = 0; c < cut.channels; c++) {
            const own = value(change, index + c * cut.volume);
            if (Math.abs(own) > Math.abs(largest)) largest = own;
          }
          const colour = CHANGES[Math.round((largest / change.most + 1) * (STEPS / 2))];
          for (let c = 0; c < 3; c++) out[o + c] = colour[c];
        } else {
          for (let c = 0; c < 3; c++) {
            const there = index + (cut.channels === 3 ? c : 0) * cut.volume;
            const own = value(image, there) + (attacked ? value(change, there) : 0);
            out[o + c] = (own - low) * scale;
          }
        }
        const k = prediction ? prediction.codes[index] : 0;
        if (k > 0) {
          const colour = classColour(k);
          for (let c = 0; c < 3; c++) out[o + c] = 0.55 * out[o + c] + 0.45 * colour[c];
        }
        out[o + 3] = 255;
      }
    }
    return pixels;
  };

  // Edges between pixels of different label, as lines on a canvas of the given size.
  const outline = (cut, label, width, height) => {
    const path = new Path2D();
    const [sx, sy] = [width / cut.width, height / cut.height];
    for (let y = 0; y < cut.height; y++) {
      for (let x = 0; x < cut.width; x++) {
        const own = label.codes[cut.at(x, y)];
        if (x + 1 < cut.width && own !== label.codes[cut.at(x + 1, y)]) {
          path.moveTo((x + 1) * sx, y * sy);
          path.lineTo((x + 1) * sx, (y + 1) * sy);
        }
        if (y + 1 < cut.height && own !== label.codes[cut.at(x, y + 1)]) {
          path.moveTo(x * sx, (y + 1) * sy);
          path.lineTo((x + 1) * sx, (y + 1) * sy);
        }
      }
    }
    return path;
  };

  return { changeColour, classColour, decode, outline, paint, plane, value };
})();
