// What lies over the picture: the heat map, and a box around each face.

import { percents } from "./i18n.js";

const $ = (id) => document.getElementById(id);

// Red, green, blue at even steps from cold to hot, as in the legend and in pipeline/overlay.py, which says why these.
const COLOURS = [[31, 59, 224], [106, 26, 232], [200, 0, 216], [255, 20, 144]];

/** Draw what is known of an item: `map` is the answer of /explain, `answer` that of /predict; either may be missing. */
export function draw(item) {
  const image = $("preview"), canvas = $("map");
  const shown = !image.hidden && image.naturalWidth > 0;
  canvas.hidden = !shown || !item?.map;
  $("boxes").replaceChildren();
  if (!shown) return;

  // `object-fit: contain` centres the picture in its box.
  const scale = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
  const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
  const left = image.offsetLeft + (image.clientWidth - width) / 2, top = image.offsetTop + (image.clientHeight - height) / 2;
  if (item?.map) heat(canvas, item.map, { left, top, width, height });
  const faces = item?.answer?.faces ?? [];
  faces.forEach((face, index) => {
    const box = document.createElement("div");
    box.className = `box ${side(face.probability_fake, item.answer.thresholds)}`;
    Object.assign(box.style, {
      left: `${left + face.box.x * scale}px`,
      top: `${top + face.box.y * scale}px`,
      width: `${face.box.width * scale}px`,
      height: `${face.box.height * scale}px`,
    });
    const [figure] = percents(face.probability_fake, item.answer.thresholds);
    const label = document.createElement("span");
    label.textContent = faces.length > 1 ? `${index + 1} · ${figure}` : figure;
    box.append(label);
    $("boxes").append(box);
    place(label, box);
  });
}

/** Put a label above its box, or as near as it can be seen: nothing shows outside of the stage. */
function place(label, box) {
  const left = box.offsetLeft + box.clientLeft, top = box.offsetTop + box.clientTop;
  const right = Math.max(0, $("stage").clientWidth - label.offsetWidth);
  label.style.left = `${Math.min(Math.max(box.offsetLeft, 0), right) - left}px`;
  label.style.top = `${Math.max(box.offsetTop - label.offsetHeight, 0) - top}px`;
}

/** On which side of the thresholds a probability lies. */
export function side(probability, { real_below: low, fake_above: high }) {
  if (probability >= high) return "fake";
  return probability < low ? "real" : "uncertain";
}

/** Lay the map on the part of the picture that the model saw. */
function heat(canvas, { heat: rows, region }, { left, top, width, height }) {
  const cells = new ImageData(rows[0].length, rows.length);
  rows.flat().forEach((value, index) => cells.data.set([...colour(value), 255 * value], index * 4));
  const small = new OffscreenCanvas(cells.width, cells.height);
  small.getContext("2d").putImageData(cells, 0, 0);
  canvas.width = Math.max(1, Math.round(width * region.width * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(height * region.height * devicePixelRatio));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  Object.assign(canvas.style, {
    left: `${left + width * region.left}px`,
    top: `${top + height * region.top}px`,
    width: `${width * region.width}px`,
    height: `${height * region.height}px`,
    opacity: $("opacity").value / 100,
  });
}

function colour(value) {
  const place = value * (COLOURS.length - 1);
  const from = COLOURS[Math.floor(place)], to = COLOURS[Math.ceil(place)];
  return from.map((channel, index) => channel + (to[index] - channel) * (place % 1));
}
