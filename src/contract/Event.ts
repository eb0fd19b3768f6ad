/**
 * Events: what a worker says about a finished request, as it writes them and as a client reads them.
 *
 * Encoding is by concatenation: it runs once for each append or entry, and numbers of 64 bits keep their digits.
 */
import { Option, Schema } from "effect"
import { cursorText, type Cursor } from "./Cursor.ts"
import type { LogEntry, Placed } from "./LogEntry.ts"
import { toMillis } from "./LogEntry.ts"
import type { ObjectId } from "./ObjectId.ts"
import type { Refusal } from "./Request.ts"

// --- Encoding

const requestIdField = (requestId: string | undefined): string =>
  requestId === undefined ? "" : `,"request_id":${JSON.stringify(requestId)}`

export const encodeAppended = (id: ObjectId, placed: Placed, requestId: string | undefined): string =>
  `{"type":"append","status":"ok","id":${id},"position":${placed.position},"seq":${placed.seq},"timestamp":${toMillis(placed.timestamp)}${placed._tag === "Duplicate" ? ',"duplicate":true' : ""}${requestIdField(requestId)}}`

export const encodeError = (
  type: "append" | "query",
  refusal: Pick<Refusal, "code" | "message" | "requestId" | "id">,
): string =>
  `{"type":"${type}","status":"error"${refusal.id === undefined ? "" : `,"id":${refusal.id}`},"error":{"code":"${refusal.code}","message":${JSON.stringify(refusal.message)}}${requestIdField(refusal.requestId)}}`

export const encodeEntry = (entry: LogEntry): string =>
  `{"position":${entry.position},"seq":${entry.seq},"timestamp":${toMillis(entry.timestamp)},"log":${JSON.stringify(entry.log)}}`

export interface Page {
  /** Names the state of the log that the page shows and how it was cut: pages with the same one belong together. */
  readonly snapshot: string
  readonly page: number
  readonly last: boolean
  /** Entries as `encodeEntry` made them. */
  readonly entries: ReadonlyArray<string>
  readonly next: Cursor | undefined
}

export const encodePage = (id: ObjectId, page: Page, requestId: string | undefined): string =>
  `{"type":"query","status":"ok","id":${id},"snapshot":"${page.snapshot}","page":${page.page},"last":${page.last},"entries":[${page.entries.join(",")}]${page.next === undefined ? "" : `,"next":"${cursorText(id, page.next)}"`}${requestIdField(requestId)}}`

// --- Decoding

/** An entry as a page shows it. */
export interface Entry {
  readonly position: number
  readonly seq: number
  /** Unix milliseconds. */
  readonly timestamp: number
  readonly log: string
}

/** An append is in the log. */
export interface AppendedEvent {
  readonly type: "append"
  readonly requestId: string | undefined
  /** The object, with all its digits. */
  readonly id: string
  readonly position: number
  readonly seq: number
  /** Unix milliseconds. */
  readonly timestamp: number
  readonly duplicate: boolean
}

/** One page of a read. */
export interface PageEvent {
  readonly type: "query"
  readonly requestId: string | undefined
  /** Pages with the same one belong together. */
  readonly snapshot: string
  readonly page: number
  readonly last: boolean
  readonly entries: ReadonlyArray<Entry>
  /** Where `limit` cut the read short: the `after` of the next read. */
  readonly next: string | undefined
}

/** A request was refused. */
export interface RefusedEvent {
  readonly type: "refused"
  readonly requestId: string | undefined
  readonly code: string
  readonly reason: string
}

/** What has a request id and is no event of this contract. */
interface UnknownEvent {
  readonly type: "unknown"
  readonly requestId: string
}

export type Event = AppendedEvent | PageEvent | RefusedEvent | UnknownEvent

/** An append's event as a worker writes it; any other spelling takes the long way. */
const usual =
  /^\{"type":"append","status":"ok","id":(\d{1,20}),"position":(\d{1,16}),"seq":(\d{1,16}),"timestamp":(\d{1,16})(,"duplicate":true)?(?:,"request_id":"([^"\\]*)")?\}$/

/** The usual event is shorter than this, in characters: a page is not looked at twice. */
const usualLengthMax = 1_024

const Addressed = Schema.Struct({ request_id: Schema.String })
const Appended = Schema.Struct({
  type: Schema.Literal("append"),
  status: Schema.Literal("ok"),
  position: Schema.Int,
  seq: Schema.Int,
  timestamp: Schema.Int,
  duplicate: Schema.optionalKey(Schema.Boolean),
})
const Paged = Schema.Struct({
  type: Schema.Literal("query"),
  status: Schema.Literal("ok"),
  snapshot: Schema.String,
  page: Schema.Int,
  last: Schema.Boolean,
  entries: Schema.Array(
    Schema.Struct({ position: Schema.Int, seq: Schema.Int, timestamp: Schema.Int, log: Schema.String }),
  ),
  next: Schema.optionalKey(Schema.String),
})
const Refused = Schema.Struct({
  status: Schema.Literal("error"),
  error: Schema.Struct({ code: Schema.String, message: Schema.String }),
})
const decodeAddressed = Schema.decodeUnknownOption(Addressed)
const decodeAppended = Schema.decodeUnknownOption(Appended)
const decodePaged = Schema.decodeUnknownOption(Paged)
const decodeRefused = Schema.decodeUnknownOption(Refused)

/** Reads an event; `undefined` where it is none and names no request either. */
export const decodeEvent = (text: string): Event | undefined => {
  const match = text.length < usualLengthMax ? usual.exec(text) : null
  if (match === null) return decodeUnusual(text)
  const [, id, position, seq, timestamp, duplicate, requestId] = match
  return {
    type: "append",
    requestId,
    id: id!,
    position: Number(position),
    seq: Number(seq),
    timestamp: Number(timestamp),
    duplicate: duplicate !== undefined,
  }
}

const decodeUnusual = (text: string): Event | undefined => {
  let body: unknown
  try {
    body = JSON.parse(text)
  } catch {
    return undefined
  }
  const requestId = Option.getOrUndefined(decodeAddressed(body))?.request_id
  const refused = decodeRefused(body)
  if (Option.isSome(refused)) {
    return { type: "refused", requestId, code: refused.value.error.code, reason: refused.value.error.message }
  }
  const paged = decodePaged(body)
  if (Option.isSome(paged)) {
    const { entries, last, next, page, snapshot } = paged.value
    return { type: "query", requestId, snapshot, page, last, entries, next }
  }
  const appended = decodeAppended(body)
  if (Option.isSome(appended)) {
    const { duplicate, position, seq, timestamp } = appended.value
    // The parsed number has lost digits of a large id.
    const id = /"id"\s*:\s*"?(\d+)/.exec(text)?.[1] ?? ""
    return { type: "append", requestId, id, position, seq, timestamp, duplicate: duplicate === true }
  }
  return requestId === undefined ? undefined : { type: "unknown", requestId }
}
