/**
 * Text from outside, on its way to a person or a pipe. A terminal obeys what it is sent: control characters move its cursor,
 * change its colours or answer as if typed, and marks of direction show text other than it is. For a terminal they are
 * written as escapes; a pipe or a file gets what was sent.
 */

/** What a terminal would obey: control characters, and those that turn the direction of text. And what UTF-8 can't hold. */
const obeyed = String.raw`\p{Cc}|\p{Cs}|\p{Bidi_Control}|[\u2028\u2029]`
const obeyedByTerminal = new RegExp(obeyed, "gu")

/** What could part lines, or begins an escape. */
const ambiguousInLine = /[\n\\]|\p{Cs}/gu
const obeyedInLine = new RegExp(String.raw`\\|${obeyed}`, "gu")

const named: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\" }

const escapeCharacter = (character: string): string => {
  const name = named[character]
  if (name !== undefined) return name
  const code = character.charCodeAt(0)
  return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`
}

/** A text in one line from which it can be told again: `\n` and `\\` are always escaped, for a terminal all that it obeys. */
export const escapeLog = (log: string, terminal: boolean): string =>
  log.replace(terminal ? obeyedInLine : ambiguousInLine, escapeCharacter)

/** A line of ours that may cite text from outside. Nothing in it can begin another line. */
export const messageLine = (message: string, terminal: boolean): string =>
  message.replace(terminal ? obeyedByTerminal : /[\n\r]/g, escapeCharacter)

/** Lines of ours, such as a stack, that may cite text from outside. */
export const messageLines = (message: string, terminal: boolean): string =>
  message
    .split("\n")
    .map((line) => messageLine(line, terminal))
    .join("\n")

const escapeInJson = (character: string): string =>
  character === "\t" ? " " : `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`

/**
 * JSON in one line, the same value. Line ends and tabs can only be between its tokens: within a string they would be escapes.
 * All else that a terminal obeys can only be within a string.
 */
export const jsonLine = (json: string, terminal: boolean): string => {
  const line = json.replace(/[\n\r]/g, " ")
  return terminal ? line.replace(obeyedByTerminal, escapeInJson) : line
}
