/** Dead letters as an operator sees them: rows of a table, lines of JSON, and one letter in full. */
import { Result } from "effect"
import { isUtf8 } from "node:buffer"
import type { Letter } from "../letters/Letter.ts"
import { headerValue } from "../nats/headers.ts"
import { toMillis } from "../contract/LogEntry.ts"
import type { ObjectId } from "../contract/ObjectId.ts"
import { decodeAppend, decodeText } from "../contract/Request.ts"
import { escapeLog, jsonLine } from "./terminal.ts"

/** The object of a refused request, where that much of it can be read. */
export const objectOf = ({ missingParts, payload }: Letter): ObjectId | undefined => {
  if (missingParts > 0) return undefined
  // A read request is refused here for its missing log, with its id.
  const decoded = decodeAppend(decodeText(payload), { maxPayload: Number.MAX_SAFE_INTEGER, responseTopic: "response" })
  return Result.isSuccess(decoded) ? decoded.success.id : decoded.failure.id
}

const units = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1_000],
] as const

/** A span of time in its largest whole unit: `3h`. */
export const ageText = (millis: number): string => {
  const [name, size] = units.find(([, unit]) => millis >= unit) ?? units.at(-1)!
  return `${Math.max(0, Math.floor(millis / size))}${name}`
}

/** Reads `90s`, `15m`, `2h` or `7d`, in milliseconds. */
export const parseSpan = (text: string): number | undefined => {
  const match = /^(\d{1,6})([smhd])$/.exec(text)
  return match === null ? undefined : Number(match[1]) * units.find(([name]) => name === match[2])![1]
}

/** A payload in one line that no terminal obeys: text escaped, other bytes as `\x..`. */
export const payloadText = (payload: Uint8Array): string => {
  const bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength)
  if (isUtf8(bytes)) return escapeLog(bytes.toString(), true)
  return bytes
    .toString("latin1")
    .replace(/[^\x20-\x5b\x5d-\x7e]/g, (byte) => `\\x${byte.charCodeAt(0).toString(16).padStart(2, "0")}`)
}

const reasonOf = (letter: Letter): string =>
  letter.missingParts === 0
    ? letter.reason
    : `${letter.reason} (incomplete: ${letter.missingParts} part${letter.missingParts === 1 ? "" : "s"} missing)`

// --- The table

const columns = ["SEQ", "AGE", "SUBJECT", "CODE", "OBJECT", "BYTES", "REASON"] as const
const isNumber = [true, true, false, false, true, true, false]

/** Makes rows; a column is as wide as its widest value so far, and the reason is cut at the width of the terminal. */
export const makeTable = (now: number, terminalColumns: number) => {
  const widths: Array<number> = columns.map((name) => name.length)
  let first = true
  return (letters: ReadonlyArray<Letter>): string => {
    const rows = letters.map((letter) => [
      String(letter.seq),
      ageText(now - toMillis(letter.refusedAt)),
      escapeLog(letter.subject, true),
      escapeLog(letter.code, true),
      String(objectOf(letter) ?? "-"),
      letter.missingParts > 0 ? "-" : String(letter.payload.byteLength),
      escapeLog(reasonOf(letter), true),
    ])
    for (const row of rows) row.forEach((cell, at) => (widths[at] = Math.max(widths[at]!, cell.length)))
    const all = first && rows.length > 0 ? [[...columns], ...rows] : rows
    if (rows.length > 0) first = false
    return all.map((row) => `${line(row, widths, terminalColumns)}\n`).join("")
  }
}

const line = (row: ReadonlyArray<string>, widths: ReadonlyArray<number>, terminalColumns: number): string => {
  const last = row.length - 1
  const start = row
    .slice(0, last)
    .map((cell, at) => (isNumber[at] ? cell.padStart(widths[at]!) : cell.padEnd(widths[at]!)))
    .join("  ")
  const room = Math.max(20, terminalColumns - start.length - 2)
  const reason = row[last]!
  return `${start}  ${reason.length <= room ? reason : `${reason.slice(0, room - 1).toWellFormed()}…`}`
}

// --- Counts

export interface Count {
  readonly code: string
  readonly letters: number
  /** Of the oldest and the newest, Unix milliseconds. */
  readonly oldest: number
  readonly newest: number
}

/** Counts letters by their code. */
export class Counts {
  readonly #byCode = new Map<string, Count>()

  add({ code, refusedAt }: Letter): void {
    const at = toMillis(refusedAt)
    const known = this.#byCode.get(code) ?? { code, letters: 0, oldest: at, newest: at }
    this.#byCode.set(code, {
      code,
      letters: known.letters + 1,
      oldest: Math.min(known.oldest, at),
      newest: Math.max(known.newest, at),
    })
  }

  /** Most frequent first. */
  all(): ReadonlyArray<Count> {
    return [...this.#byCode.values()].sort((a, b) => b.letters - a.letters)
  }

  get letters(): number {
    return this.all().reduce((sum, { letters }) => sum + letters, 0)
  }

  /** One line for a person. */
  summary(now: number): string {
    const parts = this.all().map(
      ({ code, letters, oldest }) => `${letters} ${escapeLog(code, true)} (oldest ${ageText(now - oldest)})`,
    )
    return parts.length === 0 ? "no dead letters" : `${lettersText(this.letters)}: ${parts.join(", ")}`
  }
}

export const lettersText = (count: number): string => `${count} dead letter${count === 1 ? "" : "s"}`

// --- One letter

const iso = (nanos: bigint): string => new Date(toMillis(nanos)).toISOString()

/** As text where it is UTF-8, else in base64. */
const payloadFields = (payload: Uint8Array): string => {
  const bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength)
  return isUtf8(bytes)
    ? `"payload":${JSON.stringify(bytes.toString())}`
    : `"payload_base64":"${bytes.toString("base64")}"`
}

/** A letter as a line of JSON, with its request where it is wanted. By concatenation, so that an id keeps its digits. */
export const letterJson = (letter: Letter, withRequest: boolean, terminal: boolean): string => {
  const id = objectOf(letter)
  const stamp =
    letter.stamp === undefined
      ? ""
      : `,"request_seq":${letter.stamp.seq},"request_timestamp":${toMillis(letter.stamp.timestamp)}`
  const headers = letter.headers.map(([name, value]) => [headerValue(name), headerValue(value)])
  const request = withRequest ? `,"headers":${JSON.stringify(headers)},${payloadFields(letter.payload)}` : ""
  const json = `{"seq":${letter.seq},"refused":${toMillis(letter.refusedAt)},"code":${JSON.stringify(letter.code)},"reason":${JSON.stringify(letter.reason)},"subject":${JSON.stringify(letter.subject)}${stamp}${id === undefined ? "" : `,"id":${id}`},"bytes":${letter.payload.byteLength}${letter.missingParts > 0 ? `,"missing_parts":${letter.missingParts}` : ""}${request}}`
  return `${jsonLine(json, terminal)}\n`
}

/** Everything about a letter, for a person. */
export const letterText = (letter: Letter, now: number): string => {
  const age = ageText(now - toMillis(letter.refusedAt))
  const { stamp } = letter
  const fields: ReadonlyArray<readonly [string, string]> = [
    ["dead letter", `${letter.seq}${letter.seqs.length > 1 ? `, in ${letter.seqs.length} parts` : ""}`],
    ["refused", `${iso(letter.refusedAt)}, ${age} ago`],
    ["code", letter.code],
    ["reason", reasonOf(letter)],
    ["subject", letter.subject],
    ["sent", stamp === undefined ? "unknown" : `${iso(stamp.timestamp)}, as number ${stamp.seq} of its stream`],
    ["object", String(objectOf(letter) ?? "unknown")],
    ...letter.headers.map(([name, value]) => ["header", `${headerValue(name)}: ${headerValue(value)}`] as const),
    ["payload", letter.missingParts > 0 ? "unknown" : `${letter.payload.byteLength} bytes`],
  ]
  const shown = fields.map(([name, value]) => `${name.padEnd(12)}  ${escapeLog(value, true)}\n`).join("")
  return letter.missingParts > 0 ? shown : `${shown}\n${payloadText(letter.payload)}\n`
}
