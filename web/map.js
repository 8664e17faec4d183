// What is drawn over the image: the heat map, and a box around each face.

import { percents } from "./i18n.js";

const $ = (id) => document.getElementById(id);

// RGB at even steps from cold to hot, as in the legend and in pipeline/explanation/overlay.py, which explains the choice.
const COLOURS = [[31, 59, 224], [106, 26, 232], [200, 0, 216], [255, 20, 144]];

/** Draw what is known about an item: `map` is the answer of /explain, `answer` that of /predict; either may be missing. */
export function draw(item) {
  const image = $("preview"), canvas = $("map");
  const shown = !image.hidden && image.naturalWidth > 0;
  canvas.hidden = !shown || !item?.map;
  $("boxes").replaceChildren();
  image.style.filter = "";
  if (!shown) return;

  // In fractions of the image: it is smaller when printed, and no script runs then.
  const { naturalWidth, naturalHeight } = image;
  $("seen").style.setProperty("--ratio", naturalWidth / naturalHeight);
  if (item?.map) heat(canvas, item.map);
  // The more opaque the map, the greyer the image: its own colours would be mistaken for heat.
  if (item?.map?.heat.flat().some((value) => value > 0)) image.style.filter = `grayscale(${2 * canvas.style.opacity})`;
  const faces = item?.answer?.faces ?? [];
  faces.forEach((face, index) => {
    const box = document.createElement("div");
    box.className = `box ${side(face.probability_fake, item.answer.thresholds)}`;
    lay(box, face.box.x / naturalWidth, face.box.y / naturalHeight, face.box.width / naturalWidth, face.box.height / naturalHeight);
    const [figure] = percents(face.probability_fake, item.answer.thresholds);
    const label = document.createElement("span");
    label.textContent = faces.length > 1 ? `${index + 1} · ${figure}` : figure;
    box.append(label);
    $("boxes").append(box);
    place(label, box);
  });
}

/** Place an element on a part of the image, in fractions of its sides. */
function lay(element, left, top, width, height) {
  const shares = Object.entries({ left, top, width, height });
  Object.assign(element.style, Object.fromEntries(shares.map(([name, share]) => [name, `${100 * share}%`])));
}

/** Put a label above its box, or as close as it stays visible: nothing shows outside the stage. */
function place(label, box) {
  const { offsetLeft: outerLeft, offsetTop: outerTop } = $("seen");
  const left = box.offsetLeft + box.clientLeft + outerLeft, top = box.offsetTop + box.clientTop + outerTop;
  const right = Math.max(0, $("stage").clientWidth - label.offsetWidth);
  label.style.left = `${Math.min(Math.max(box.offsetLeft + outerLeft, 0), right) - left}px`;
  label.style.top = `${Math.max(box.offsetTop + outerTop - label.offsetHeight, 0) - top}px`;
}

/** On which side of the thresholds a probability lies. */
export function side(probability, { real_below: low, fake_above: high }) {
  if (probability >= high) return "fake";
  return probability < low ? "real" : "uncertain";
}

/** Draw the map over the part of the image that the model saw. */
function heat(canvas, { heat: rows, region }) {
  const cells = new ImageData(rows[0].length, rows.length);
  rows.flat().forEach((value, index) => cells.data.set([...colour(value), 255 * value], index * 4));
  const small = new OffscreenCanvas(cells.width, cells.height);
  small.getContext("2d").putImageData(cells, 0, 0);
  lay(canvas, region.left, region.top, region.width, region.height);
  canvas.style.opacity = $("opacity").value / 100;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function colour(value) {
  const place = value * (COLOURS.length - 1);
  const from = COLOURS[Math.floor(place)], to = COLOURS[Math.ceil(place)];
  return from.map((channel, index) => channel + (to[index] - channel) * (place % 1));
}
