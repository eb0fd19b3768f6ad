/**
 * What a worker gets from the broker by the thousand, requests and acknowledgements, read from the client protocol in
 * whole pieces.
 *
 * The client library reads byte by byte and makes six views of bytes for each message, which live as long as the message
 * and cost the garbage collector more than all else. Here a piece, as the socket gave it, becomes one text, and what a
 * message says are slices of that. Messages of subscriptions that don't listen here, and all other operations, go to the
 * library's own parser, in order.
 */
import type { Msg, NatsConnection, Subscription } from "@nats-io/transport-node"
import { isAscii, isUtf8 } from "node:buffer"
import { numberIn } from "./ackSubject.ts"
import { insideOf, type Parser } from "./inside.ts"

/** One message. `headers` is the block as text, as headers.ts reads it; the payload is text where it is UTF-8. */
export type Receive = (subject: string, reply: string, headers: string, payload: string | Uint8Array) => void

const space = 0x20
const lineEnd = "\r\n"

/** The last space before `at`. By hand, since `lastIndexOf` is slow. */
const spaceBefore = (text: string, at: number): number => {
  let before = at - 1
  while (text.charCodeAt(before) !== space) before--
  return before
}

/**
 * `MSG <subject> <sid> [reply] <size>` or `HMSG <subject> <sid> [reply] <size of headers> <size of all>`: where its words are, and
 * what they say.
 */
interface ControlLine {
  readonly subject: number
  readonly subjectEnd: number
  readonly sid: number
  readonly sidEnd: number
  /** Where the reply ends; there is none if that is where the sid ends. */
  readonly replyEnd: number
  /** Bytes. */
  readonly headersSize: number
  readonly size: number
}

/** What `at` … `end` says, without its line end; `undefined` where it is no message. */
const parseControlLine = (text: string, at: number, end: number): ControlLine | undefined => {
  const hasHeaders = text.startsWith("HMSG ", at)
  if (!hasHeaders && !text.startsWith("MSG ", at)) return undefined
  const subject = at + (hasHeaders ? 5 : 4)
  const subjectEnd = text.indexOf(" ", subject)
  const sidEnd = text.indexOf(" ", subjectEnd + 1)
  const lastSpace = spaceBefore(text, end)
  const replyEnd = hasHeaders ? spaceBefore(text, lastSpace) : lastSpace
  return {
    subject,
    subjectEnd,
    sid: numberIn(text, subjectEnd + 1, sidEnd),
    sidEnd,
    replyEnd,
    headersSize: hasHeaders ? numberIn(text, replyEnd + 1, lastSpace) : 0,
    size: numberIn(text, lastSpace + 1, end),
  }
}

/** A piece of the protocol, as bytes and as text of one character for each. */
interface Piece {
  readonly bytes: Buffer
  readonly text: string
  readonly ascii: boolean
}

class Pieces implements Parser {
  readonly #library: Parser
  readonly #receivers: ReadonlyMap<number, Receive>
  /** The beginning of an operation whose end has not come yet; how long it is where that is known, otherwise 0. */
  #begun: Buffer | undefined
  #filled = 0
  #needed = 0

  constructor(library: Parser, receivers: ReadonlyMap<number, Receive>) {
    this.#library = library
    this.#receivers = receivers
  }

  parse(piece: Uint8Array): void {
    let next = Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength)
    const begun = this.#begun
    if (begun !== undefined && this.#needed > 0) {
      // By itself, and not with what follows: whoever keeps a small message would keep the long one before it.
      const part = next.subarray(0, this.#needed - this.#filled)
      begun.set(part, this.#filled)
      this.#filled += part.length
      if (this.#filled < this.#needed) return
      this.#begun = undefined
      this.#read(begun)
      next = next.subarray(part.length)
    } else if (begun !== undefined) {
      this.#begun = undefined
      next = Buffer.concat([begun, next])
    }
    this.#read(next)
  }

  /** Reads whole operations, and keeps what is begun. */
  #read(bytes: Buffer): void {
    const text = bytes.toString("latin1")
    const ascii = isAscii(bytes)
    let at = 0
    while (at < bytes.length) {
      const end = text.indexOf(lineEnd, at)
      if (end < 0) return this.#keep(bytes, at, 0)
      const start = end + lineEnd.length
      const line = parseControlLine(text, at, end)
      const next = line === undefined ? start : start + line.size + lineEnd.length
      if (next > bytes.length) return this.#keep(bytes, at, next - at)
      const receive = line === undefined ? undefined : this.#receivers.get(line.sid)
      if (line === undefined || receive === undefined) this.#library.parse(bytes.subarray(at, next))
      else this.#hand(receive, line, { bytes, text, ascii }, start)
      at = next
    }
  }

  /** Hands on the message of a line whose headers begin at `start`. */
  #hand(receive: Receive, line: ControlLine, { ascii, bytes, text }: Piece, start: number): void {
    const { headersSize, replyEnd, sidEnd, size, subject, subjectEnd } = line
    const from = start + headersSize
    const after = start + size
    receive(
      ascii ? text.slice(subject, subjectEnd) : bytes.toString("utf8", subject, subjectEnd),
      ascii ? text.slice(sidEnd + 1, replyEnd) : bytes.toString("utf8", sidEnd + 1, replyEnd),
      text.slice(start, from),
      ascii ? text.slice(from, after) : textOrBytes(bytes.subarray(from, after)),
    )
  }

  #keep(bytes: Buffer, from: number, needed: number): void {
    this.#filled = bytes.length - from
    this.#needed = needed
    this.#begun = Buffer.allocUnsafe(needed || this.#filled)
    bytes.copy(this.#begun, 0, from)
  }
}

/** Bytes that are not UTF-8 are copied, so that they don't keep the whole piece. */
const textOrBytes = (bytes: Buffer): string | Uint8Array => {
  const text = bytes.toString()
  return !text.includes("\ufffd") || isUtf8(bytes) ? text : Buffer.from(bytes)
}

/** The same of a message that went through the library all the same; header bytes that are no UTF-8 are lost there. */
export const received = ({ data, headers, reply, subject }: Msg): Parameters<Receive> => {
  let block = ""
  if (headers !== undefined) {
    const status = headers.code === 0 ? "" : ` ${`${headers.code} ${headers.description}`.trim()}`
    block = `NATS/1.0${status}\r\n`
    for (const name of headers.keys()) for (const value of headers.values(name)) block += `${name}: ${value}\r\n`
    block = Buffer.from(`${block}\r\n`).toString("latin1")
  }
  return [subject, reply ?? "", block, textOrBytes(Buffer.from(data))]
}

export class Incoming {
  readonly #receivers = new Map<number, Receive>()

  constructor(connection: NatsConnection) {
    const inside = insideOf(connection)
    let parser: Parser = new Pieces(inside.parser, this.#receivers)
    Object.defineProperty(inside, "parser", {
      get: () => parser,
      set: (library: Parser) => {
        parser = new Pieces(library, this.#receivers)
      },
    })
  }

  /**
   * Sends the messages of a subscription to `receive`, which must not throw, in place of its callback. That callback should do the same
   * with `received`: whatever comes to it was not seen here.
   */
  listen(subscription: Subscription, receive: Receive): void {
    this.#receivers.set(subscription.getID(), receive)
  }

  forget(subscription: Subscription): void {
    this.#receivers.delete(subscription.getID())
  }
}
