// What this browser keeps for the page.

/** `localStorage` or `sessionStorage`. If the user's settings forbid them, reading throws; a stand-in then lasts as long as the page. */
export function storage(kind) {
  try {
    return window[kind];
  } catch {
    const kept = new Map();
    return { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value), removeItem: (key) => kept.delete(key) };
  }
}
