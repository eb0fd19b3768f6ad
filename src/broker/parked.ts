/**
 * Parked requests: those of a shard that takes none, and refused appends that are tried again.
 *
 * They lie in a stream of their own, on `<logs topic>_parked.appends.<token of the shard>`, `<logs topic>_parked.reads.<token>`
 * and `<logs topic>_parked.retry`, with their payload, their headers, and the stamp that the intake gave them. They are
 * presented with that stamp, so that a request keeps its identity, its place in the order and the id of its event, however
 * often it is parked.
 */
import { createHash } from "node:crypto"
import type { Stamp } from "../contract/LogEntry.ts"
import { isPublishable } from "../contract/Subject.ts"
import { parkedTopic } from "../contract/Topics.ts"
import type { ParkedKind } from "./Broker.ts"
import { kept, unkept } from "./keptHeaders.ts"
import { blockText, type Headers } from "../nats/headers.ts"
import type { Message } from "../nats/publish.ts"

/** Where a request came from. */
interface Origin extends Stamp {
  readonly subject: string
  /** Makes the ids of a retried request's outcome others than those of the outcome before; `""` when parked. */
  readonly outcomePrefix: string
}

/** A request with its original headers. */
export interface OriginalRequest extends Origin {
  readonly payload: Uint8Array
  headers(): Headers
}

/** Longest name that becomes a token as it is; longer ones are hashed, since the server makes a file name of it. */
const tokenMax = 128

/** A shard's name as one token of a subject: what is no letter, digit or `-` becomes `_` and its code in hex. */
export const shardToken = (shard: string): string => {
  const token = shard.replace(/[^A-Za-z0-9-]/g, (char) => `_${char.charCodeAt(0).toString(16).padStart(2, "0")}`)
  return token.length <= tokenMax ? token : createHash("sha256").update(shard).digest("hex")
}

export const parkedSubject = (logsTopic: string, kind: ParkedKind, shard: string): string =>
  `${parkedTopic(logsTopic)}.${kind}.${shardToken(shard)}`

export const retrySubject = (logsTopic: string): string => `${parkedTopic(logsTopic)}.retry`

/** The headers that such a message begins with, in this order; the last one ends them. */
const added = {
  subject: "Objectlog-Subject",
  seq: "Objectlog-Seq",
  timestamp: "Objectlog-Timestamp",
  /** Of a retry only. */
  outcome: "Objectlog-Outcome",
  id: "Nats-Msg-Id",
} as const

/** The message that keeps a request; `undefined` where it does not fit in `max_payload` with the added headers. */
export const parkedMessage = (subject: string, request: OriginalRequest, maxPayload: number): Message | undefined => {
  const { outcomePrefix, payload, seq, timestamp } = request
  const headers: Headers = [
    [added.subject, request.subject],
    [added.seq, String(seq)],
    [added.timestamp, String(timestamp)],
    ...(outcomePrefix === "" ? [] : [[added.outcome, outcomePrefix.slice(0, -1)] as const]),
    [added.id, `${outcomePrefix}${request.subject}-${seq}-${timestamp}`],
    ...request.headers().map(kept),
  ]
  // The server counts headers as part of the message; their text has one character for each byte.
  const block = blockText(headers)
  if (payload.byteLength + block.length > maxPayload) return undefined
  return { subject, payload, headers: block, copy: undefined }
}

/** The message that has a refused append tried again; `undefined` where it does not fit. Each retry has its own `outcome`. */
export const retryMessage = (
  logsTopic: string,
  request: Omit<OriginalRequest, "outcomePrefix">,
  outcome: string,
  maxPayload: number,
): Message | undefined =>
  parkedMessage(
    retrySubject(logsTopic),
    {
      subject: request.subject,
      seq: request.seq,
      timestamp: request.timestamp,
      payload: request.payload,
      headers: () => request.headers(),
      outcomePrefix: `${outcome}-`,
    },
    maxPayload,
  )

const isSubject = (text: string): boolean => /^[!-~]{1,256}$/.test(text) && isPublishable(text)
const seqPattern = /^[1-9]\d{0,14}$/
/** Nanoseconds, below 2^63. */
const timestampPattern = /^(?:[1-9]\d{0,17}|[1-8]\d{18})$/
const outcomePattern = /^[A-Za-z0-9_-]{1,64}$/

/**
 * Reads what was added, and gives the request's own headers; `undefined` where there is no good stamp, so that the message
 * stands for itself. Ours are told by their place: a sender's header of the same name comes behind.
 */
export const readParked = (headers: Headers): { readonly origin: Origin; readonly headers: Headers } | undefined => {
  const end = headers.findIndex(([name]) => name === added.id)
  const value = (wanted: string): string => headers.slice(0, end).find(([name]) => name === wanted)?.[1] ?? ""
  const [subject, seq, timestamp] = [value(added.subject), value(added.seq), value(added.timestamp)]
  if (!isSubject(subject) || !seqPattern.test(seq) || !timestampPattern.test(timestamp)) return undefined
  const outcome = value(added.outcome)
  const outcomePrefix = outcomePattern.test(outcome) ? `${outcome}-` : ""
  return {
    origin: { subject, seq: Number(seq), timestamp: BigInt(timestamp), outcomePrefix },
    headers: headers.slice(end + 1).map(unkept),
  }
}
