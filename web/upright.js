// Turns a WebP upright. Browsers rotate JPEG, PNG and AVIF by their EXIF orientation; Chromium does not rotate WebP, the service does.

const RIFF = 0x52494646, WEBP = 0x57454250, EXIF = 0x45584946, HEAD = 0x45786966;
const LITTLE = 0x4949, ORIENTATION = 0x0112;

/** EXIF orientation -> the matrix a, b, c, d that turns the image upright; 1 is upright. */
const TURNS = { 2: [-1, 0, 0, 1], 3: [-1, 0, 0, -1], 4: [1, 0, 0, -1], 5: [0, 1, 1, 0], 6: [0, 1, -1, 0], 7: [0, -1, -1, 0], 8: [0, -1, 1, 0] };

/** The URL of an upright copy of a WebP with an EXIF orientation; null for any other file. */
export async function upright(file) {
  try {
    const start = new DataView(await file.slice(0, 12).arrayBuffer());
    if (start.getUint32(0) !== RIFF || start.getUint32(8) !== WEBP) return null;
    const view = new DataView(await file.arrayBuffer());
    const { at, little } = orientation(view) ?? {}, turn = at && TURNS[view.getUint16(at, little)];
    if (!turn) return null;
    view.setUint16(at, 1, little);  // for browsers that do rotate it
    const picture = await createImageBitmap(new Blob([view])), { width, height } = picture;
    const canvas = turn[0] ? new OffscreenCanvas(width, height) : new OffscreenCanvas(height, width);
    const context = canvas.getContext("2d");
    context.setTransform(...turn, canvas.width / 2, canvas.height / 2);
    context.drawImage(picture, -width / 2, -height / 2);
    return URL.createObjectURL(await canvas.convertToBlob());
  } catch {  // no EXIF, or nothing that can be read
    return null;
  }
}

/** Offset and byte order of the orientation in a WebP; undefined if there is none. Throws RangeError without EXIF. */
function orientation(view) {
  let at = 12;
  for (let size; view.getUint32(at) !== EXIF; at += 8 + size + (size % 2)) size = view.getUint32(at + 4, true);
  at += view.getUint32(at + 8) === HEAD ? 14 : 8;  // some write `Exif` before it, as in a JPEG
  const little = view.getUint16(at) === LITTLE;
  const directory = at + view.getUint32(at + 4, little), end = directory + 2 + 12 * view.getUint16(directory, little);
  for (let entry = directory + 2; entry < end; entry += 12) {
    if (view.getUint16(entry, little) === ORIENTATION) return { at: entry + 8, little };
  }
}
