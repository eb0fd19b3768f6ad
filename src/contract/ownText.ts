/** Texts shorter than this are never slices in V8. */
const sliceMin = 13

/**
 * The same text in memory of its own. A text that was cut out of a longer one keeps all of that: what is kept for long must not, since
 * a few small messages would hold the whole pieces in which they arrived.
 */
export const ownText = (text: string): string =>
  // Parsing makes a new text; writing and parsing give back any text exactly, lone surrogates too.
  text.length < sliceMin ? text : (JSON.parse(JSON.stringify(text)) as string)
