/**
 * Requests: an append and a read, as a client writes them and as a worker reads them.
 *
 * Decoding is written by hand, not as a Schema: it has to keep the exact digits of a 64-bit id, which `JSON.parse` alone
 * rounds, and it runs once for every message.
 */
import { Result } from "effect"
import { isUtf8 } from "node:buffer"
import { type Cursor, parseCursor } from "./Cursor.ts"
import type { ErrorCode } from "./ErrorCode.ts"
import { jsonBytes, logMaxBytes, messageIdMaxBytes, requestIdMax } from "./limits.ts"
import { fromMillis } from "./LogEntry.ts"
import * as ObjectId from "./ObjectId.ts"
import { isPublishable } from "./Subject.ts"

export interface Addressed {
  readonly requestId: string | undefined
  readonly replyTo: string | undefined
}

/** Why a request was refused, and whom to tell as far as that could be read. */
export interface Refusal extends Addressed {
  readonly code: ErrorCode
  readonly message: string
  readonly id: ObjectId.ObjectId | undefined
}

export interface AppendRequest extends Addressed {
  readonly id: ObjectId.ObjectId
  readonly log: string
}

export interface ReadRequest extends Addressed {
  readonly id: ObjectId.ObjectId
  readonly limit: number | undefined
  /** `position` reads in commit order, what a follower wants; the others by time. */
  readonly order: "asc" | "desc" | "position"
  readonly after: Cursor | undefined
  /** Unix nanoseconds, inclusive. */
  readonly from: bigint | undefined
  /** Unix nanoseconds, exclusive. */
  readonly to: bigint | undefined
}

export interface Limits {
  readonly maxPayload: number
  /** Responses may go below this subject, or to an inbox. */
  readonly responseTopic: string
}

// --- Encoding. By concatenation, so that an id keeps its digits.

/** An append as a client asks for it. */
export interface Append {
  readonly id: ObjectId.ObjectId
  readonly log: string
  /** Idempotency key within the object. */
  readonly messageId?: string | undefined
}

/** A read as a client asks for it. */
export interface Read {
  readonly id: ObjectId.ObjectId
  readonly limit?: number | undefined
  /** Unix milliseconds, inclusive. */
  readonly from?: number | undefined
  /** Unix milliseconds, exclusive. */
  readonly to?: number | undefined
  readonly order?: "asc" | "desc" | undefined
  readonly after?: string | undefined
  readonly afterPosition?: number | undefined
}

const field = (name: string, value: number | string | undefined): string =>
  value === undefined ? "" : `,"${name}":${typeof value === "string" ? JSON.stringify(value) : value}`

export const encodeAppendRequest = (append: Append, requestId: string, replyTo: string): string =>
  `{"id":${append.id},"log":${JSON.stringify(append.log)},"request_id":"${requestId}","reply_to":"${replyTo}"}`

export const encodeReadRequest = (read: Read, requestId: string, replyTo?: string): string =>
  `{"id":${read.id}${field("limit", read.limit)}${field("from", read.from)}${field("to", read.to)}${field("order", read.order)}${field("after", read.after)}${field("after_position", read.afterPosition)},"request_id":"${requestId}"${field("reply_to", replyTo)}}`

// --- Decoding

const nobody: Addressed = { requestId: undefined, replyTo: undefined }

const refuse = (
  code: ErrorCode,
  message: string,
  to: Addressed = nobody,
  id?: ObjectId.ObjectId,
): Result.Result<never, Refusal> => Result.fail({ code, message, requestId: to.requestId, replyTo: to.replyTo, id })

/** A value as an error text shows it: its JSON, cut short. */
const show = (value: unknown): string => {
  if (value === undefined) return "nothing"
  let text: string
  try {
    text = JSON.stringify(value)
  } catch {
    // JSON.parse reads any depth, JSON.stringify runs out of stack.
    return Array.isArray(value) ? "[…" : "{…"
  }
  return text.length <= 60 ? text : `${text.slice(0, 60).toWellFormed()}…`
}

interface Fields {
  readonly [name: string]: unknown
}

/** A payload as text, `undefined` where it is not UTF-8. */
export const decodeText = (payload: Uint8Array): string | undefined => {
  if (!isUtf8(payload)) return undefined
  return Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength).toString("utf8")
}

/** The index of the quote that ends the string which begins at `start`. */
const stringEnd = (text: string, start: number): number => {
  for (let at = start + 1; ; at++) {
    at = text.indexOf('"', at)
    let slashes = 0
    while (text.charCodeAt(at - 1 - slashes) === 0x5c) slashes++
    if (slashes % 2 === 0) return at
  }
}

/** What follows a key: the colon, and the value where it is a number. */
const keyed = /[ \t\n\r]*:[ \t\n\r]*([-+.0-9eE]*)/y

/**
 * The source text of the last top-level `id`, exact to the digit. `text` is a valid JSON object whose `id` is a number.
 * A scan, not a reviver of `JSON.parse`: that one recurses, so a deeply nested member would exhaust the stack.
 */
const idSource = (text: string): string => {
  let source = ""
  let depth = 0
  for (let at = 0; at < text.length; at++) {
    const char = text.charCodeAt(at)
    if (char === 0x7b || char === 0x5b) depth++
    else if (char === 0x7d || char === 0x5d) depth--
    else if (char === 0x22) {
      const start = at
      at = stringEnd(text, start)
      // Fully escaped, "id" has twelve characters between its quotes.
      if (depth !== 1 || at - start > 13) continue
      const name = text.slice(start, at + 1)
      if (name !== '"id"' && (!name.includes("\\") || JSON.parse(name) !== "id")) continue
      keyed.lastIndex = at + 1
      const match = keyed.exec(text)
      if (match !== null) source = match[1]!
    }
  }
  return source
}

const decodeId = (value: unknown, text: string): ObjectId.ObjectId | string => {
  if (typeof value === "number") {
    const source = idSource(text)
    return ObjectId.fromDecimal(source) ?? `id: expected ${ObjectId.expected}, got ${source.slice(0, 60)}`
  }
  if (typeof value === "string") {
    const id = ObjectId.fromDecimal(value)
    if (id !== undefined) return id
  }
  return `id: expected ${ObjectId.expected}, got ${show(value)}`
}

const inboxPrefix = "_INBOX."

const isReplySubject = (subject: string, responseTopic: string): boolean =>
  (subject.startsWith(inboxPrefix) || subject.startsWith(`${responseTopic}.`)) && isPublishable(subject)

/** Reads what both requests share. The address comes first, so that every later refusal can be delivered. */
const decodeFields = (
  text: string | undefined,
  limits: Limits,
): Result.Result<{ text: string; fields: Fields; to: Addressed; id: ObjectId.ObjectId }, Refusal> => {
  if (text === undefined) return refuse("invalid_json", "payload: expected JSON in UTF-8, got bytes that are not UTF-8")
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch {
    return refuse("invalid_json", `payload: expected a JSON object, got ${show(text)}`)
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    return refuse("invalid_message", `payload: expected a JSON object, got ${show(parsed)}`)
  }
  const fields = parsed as Fields
  const requestId = fields["request_id"]
  const replyTo = fields["reply_to"]
  let to = nobody
  let problem: readonly [ErrorCode, string] | undefined
  if (requestId !== undefined || replyTo !== undefined) {
    const requestIdValid = typeof requestId === "string" && requestId.length >= 1 && requestId.length <= requestIdMax
    const replyToValid = typeof replyTo === "string" && isReplySubject(replyTo, limits.responseTopic)
    to = { requestId: requestIdValid ? requestId : undefined, replyTo: replyToValid ? replyTo : undefined }
    if (requestId !== undefined && !requestIdValid) {
      problem = [
        "invalid_message",
        `request_id: expected a string of 1 … ${requestIdMax} characters, got ${show(requestId)}`,
      ]
    } else if (replyTo !== undefined && !replyToValid) {
      problem = [
        "invalid_reply_to",
        `reply_to: expected a subject below ${inboxPrefix.slice(0, -1)} or ${limits.responseTopic}, got ${show(replyTo)}`,
      ]
    }
  }
  const id = decodeId(fields["id"], text)
  if (problem !== undefined) return refuse(problem[0], problem[1], to, typeof id === "string" ? undefined : id)
  if (typeof id === "string") return refuse("invalid_message", id, to)
  return Result.succeed({ text, fields, to, id })
}

/**
 * An append as nearly all senders write it: these members, in this order, the id exact as a number, texts of anything but a
 * quote, a backslash and control characters. That is valid JSON, and its parts are what `JSON.parse` would give.
 */
const plainAppend =
  /^\{"id": ?(0|[1-9][0-9]{0,14}), ?"log": ?"([ !#-[\]-\uffff]*)"(?:, ?"request_id": ?"([ !#-[\]-\uffff]{1,128})")?\}$/

/** Decodes an append request, as `decodeText` gives its payload. Unknown fields are ignored. */
export const decodeAppend = (text: string | undefined, limits: Limits): Result.Result<AppendRequest, Refusal> => {
  const plain = text === undefined ? null : plainAppend.exec(text)
  if (plain !== null && plain[2]!.length * 6 + 2 <= logMaxBytes(limits.maxPayload)) {
    const id = BigInt(plain[1]!) as ObjectId.ObjectId
    return Result.succeed({ id, log: plain[2]!, requestId: plain[3], replyTo: undefined })
  }
  const decoded = decodeFields(text, limits)
  if (Result.isFailure(decoded)) return Result.fail(decoded.failure)
  const { fields, to, id } = decoded.success
  const log = fields["log"]
  if (typeof log !== "string") return refuse("invalid_message", `log: expected a string, got ${show(log)}`, to, id)
  const allowed = logMaxBytes(limits.maxPayload)
  // JSON's longest escape makes six bytes of one code unit: a log this short fits whatever it holds.
  if (log.length * 6 + 2 > allowed) {
    const size = jsonBytes(log)
    if (size > allowed) {
      return refuse("log_too_large", `log: expected at most ${allowed} bytes as JSON, got ${size}`, to, id)
    }
  }
  return Result.succeed({ id, log, requestId: to.requestId, replyTo: to.replyTo })
}

const isCount = (value: unknown, minimum: number): value is number =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= minimum

/** Decodes a read request, as `decodeText` gives its payload. Unknown fields are ignored. */
export const decodeRead = (text: string | undefined, limits: Limits): Result.Result<ReadRequest, Refusal> => {
  const decoded = decodeFields(text, limits)
  if (Result.isFailure(decoded)) return Result.fail(decoded.failure)
  const { fields, to, id } = decoded.success
  const invalid = (name: string, expected: string) =>
    refuse("invalid_message", `${name}: expected ${expected}, got ${show(fields[name])}`, to, id)
  const { limit, from, to: until, order, after, after_position: afterPosition } = fields
  if (limit !== undefined && !isCount(limit, 1)) return invalid("limit", "an integer from 1")
  if (from !== undefined && !isCount(from, 0)) return invalid("from", "Unix milliseconds, an integer from 0")
  if (until !== undefined && !isCount(until, 0)) return invalid("to", "Unix milliseconds, an integer from 0")
  if (order !== undefined && order !== "asc" && order !== "desc") return invalid("order", '"asc" or "desc"')
  if (afterPosition !== undefined && !isCount(afterPosition, 0)) {
    return invalid("after_position", "a position, an integer from 0")
  }
  if (after !== undefined && typeof after !== "string") return invalid("after", "the `next` of an earlier page")
  if (afterPosition !== undefined && order === "desc") {
    return refuse("invalid_message", "after_position: reads in commit order, so order can't be desc", to, id)
  }
  if (afterPosition !== undefined && after !== undefined) {
    return refuse("invalid_message", "after_position: can't be combined with after", to, id)
  }
  let cursor: Cursor | undefined =
    afterPosition === undefined ? undefined : { order: "position", position: afterPosition }
  if (after !== undefined) {
    cursor = parseCursor(after, id)
    if (cursor === undefined) {
      return refuse(
        "invalid_cursor",
        `after: expected the next of an earlier page of object ${id}, got ${show(after)}`,
        to,
        id,
      )
    }
    if (order !== undefined && cursor.order !== order && !(cursor.order === "position" && order === "asc")) {
      return refuse(
        "invalid_cursor",
        `after: that cursor is of a read with order ${cursor.order}, got order ${order}`,
        to,
        id,
      )
    }
  }
  return Result.succeed({
    id,
    limit,
    order: cursor?.order ?? order ?? "asc",
    after: cursor,
    from: from === undefined ? undefined : fromMillis(from),
    to: until === undefined ? undefined : fromMillis(until),
    requestId: to.requestId,
    replyTo: to.replyTo,
  })
}

/** Checks a `Nats-Msg-Id` header; the reason why it is refused, or `undefined`. */
export const messageIdProblem = (messageId: string): string | undefined => {
  // What PostgreSQL can't hold as text; a replacement would make two ids one, and an append would be lost.
  if (!messageId.isWellFormed()) return "Nats-Msg-Id: expected UTF-8, got bytes that are not UTF-8"
  if (messageId.includes("\u0000")) return "Nats-Msg-Id: expected no U+0000, got one"
  if (messageId.length * 3 <= messageIdMaxBytes) return undefined
  const bytes = Buffer.byteLength(messageId)
  return bytes <= messageIdMaxBytes
    ? undefined
    : `Nats-Msg-Id: expected at most ${messageIdMaxBytes} bytes, got ${bytes}`
}
