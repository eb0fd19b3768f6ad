/** Reads what the service publishes, and of that only what answers this run. */
import { Option, Schema } from "effect"
import type { Entry } from "../client/Client.ts"
import type { Place } from "./Append.ts"

export interface AppendEvent {
  readonly type: "append"
  readonly id: string
  readonly requestId: string
  readonly place: Place
}
export interface PageEvent {
  readonly type: "query"
  readonly requestId: string
  readonly snapshot: string
  readonly page: number
  readonly last: boolean
  readonly entries: ReadonlyArray<Entry>
  readonly next: string | undefined
}
export interface RefusedEvent {
  readonly type: "refused"
  readonly requestId: string
  readonly code: string
  readonly reason: string
}
export type LoadEvent = AppendEvent | PageEvent | RefusedEvent

/** An append's event as the service writes it; any other spelling takes the long way. */
const usual =
  /^\{"type":"append","status":"ok","id":(\d{1,20}),"position":(\d{1,16}),"seq":(\d{1,16}),"timestamp":(\d{1,16})(?:,"duplicate":true)?,"request_id":"([^"\\]*)"\}$/

const Addressed = Schema.Struct({ request_id: Schema.String })
const Appended = Schema.Struct({
  type: Schema.Literal("append"),
  status: Schema.Literal("ok"),
  position: Schema.Int,
  seq: Schema.Int,
  timestamp: Schema.Int,
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

/** The event in a message, if its request id begins with the run's name; `undefined` for all others. */
export const readEvent = (data: Uint8Array, run: string): LoadEvent | undefined => {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength)
  if (bytes.length < 1_024) {
    const match = usual.exec(bytes.toString("latin1"))
    if (match !== null) {
      const requestId = match[5]!
      if (!requestId.startsWith(run)) return undefined
      const place = { position: Number(match[2]), seq: Number(match[3]), timestamp: Number(match[4]) }
      return { type: "append", id: match[1]!, requestId, place }
    }
  }
  // Cheap for the pages of others, of which there may be many.
  return bytes.includes(run) ? readUnusual(bytes.toString(), run) : undefined
}

const readUnusual = (text: string, run: string): LoadEvent | undefined => {
  let body: unknown
  try {
    body = JSON.parse(text)
  } catch {
    return undefined
  }
  const addressed = decodeAddressed(body)
  if (Option.isNone(addressed) || !addressed.value.request_id.startsWith(run)) return undefined
  const requestId = addressed.value.request_id
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
  if (Option.isNone(appended)) return undefined
  const { position, seq, timestamp } = appended.value
  // The parsed number has lost digits of a large id.
  const id = /"id"\s*:\s*"?(\d+)/.exec(text)?.[1] ?? ""
  return { type: "append", id, requestId, place: { position, seq, timestamp } }
}
