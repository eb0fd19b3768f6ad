/**
 * The `next` of a page: where a read that `limit` cut short goes on. Opaque to clients; here the object's id (so that a
 * cursor of another object is refused), the order, and the last entry sent, in base 36.
 */
import type { Stamp } from "./LogEntry.ts"
import { timestampMax } from "./LogEntry.ts"
import type { ObjectId } from "./ObjectId.ts"

export type Cursor =
  | ({ readonly order: "asc" | "desc" } & Stamp)
  | { readonly order: "position"; readonly position: number }

const pattern = /^([adp])\.([0-9a-z]{1,13})\.([0-9a-z]{1,13})(?:\.([0-9a-z]{1,11}))?$/

export const cursorText = (id: ObjectId, cursor: Cursor): string =>
  cursor.order === "position"
    ? `p.${id.toString(36)}.${cursor.position.toString(36)}`
    : `${cursor.order === "asc" ? "a" : "d"}.${id.toString(36)}.${cursor.timestamp.toString(36)}.${cursor.seq.toString(36)}`

const fromBase36 = (text: string): bigint => {
  let value = 0n
  for (const digit of text) value = value * 36n + BigInt(Number.parseInt(digit, 36))
  return value
}

/** Reads a cursor of this object; `undefined` for anything else. */
export const parseCursor = (text: string, id: ObjectId): Cursor | undefined => {
  const match = pattern.exec(text)
  if (match === null || match[2] !== id.toString(36)) return undefined
  const first = fromBase36(match[3]!)
  if (match[1] === "p") {
    const position = Number(first)
    return match[4] === undefined && Number.isSafeInteger(position) ? { order: "position", position } : undefined
  }
  if (match[4] === undefined || first > timestampMax) return undefined
  const seq = Number(fromBase36(match[4]))
  return Number.isSafeInteger(seq) ? { order: match[1] === "a" ? "asc" : "desc", timestamp: first, seq } : undefined
}
