/**
 * What a worker gets from the broker by the thousand, requests and acknowledgements, read from the client protocol in
 * whole pieces.
 *
 * The client library reads byte by byte and makes six views of bytes for each message, which live as long as the message
 * and cost the garbage collector more than all else. Here a piece, as the socket gave it, becomes one text, and what a
 * message says are slices of that. Messages of subscriptions that don't listen here, and all other operations, go to the
 * library's own parser, in order.
 */
import type { NatsConnection, Subscription } from "@nats-io/transport-node"
import { isAscii, isUtf8 } from "node:buffer"

/** One message. `headers` is the block as text, as headers.ts reads it; the payload is text where it is UTF-8. */
export type Receive = (subject: string, reply: string, headers: string, payload: string | Uint8Array) => void

interface Parser {
  parse(bytes: Uint8Array): void
}

/** Of the connection's inside: the parser, anew for each connection. test/nats/Incoming.test.ts holds the library to it. */
interface Protocol {
  parser: Parser
}

const space = 0x20
const lineEnd = "\r\n"

/** The last space before `at`. By hand, since `lastIndexOf` is slow. */
const spaceBefore = (text: string, at: number): number => {
  let before = at - 1
  while (text.charCodeAt(before) !== space) before--
  return before
}

/** The decimal number between two places. */
export const numberIn = (text: string, from: number, to: number): number => {
  let value = 0
  for (let at = from; at < to; at++) value = value * 10 + text.charCodeAt(at) - 0x30
  return value
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

  #read(bytes: Buffer): void {
    const text = bytes.toString("latin1")
    const ascii = isAscii(bytes)
    let at = 0
    while (at < bytes.length) {
      const end = text.indexOf(lineEnd, at)
      if (end < 0) return this.#keep(bytes, at, 0)
      const hasHeaders = text.startsWith("HMSG ", at)
      if (!hasHeaders && !text.startsWith("MSG ", at)) {
        this.#library.parse(bytes.subarray(at, end + 2))
        at = end + 2
        continue
      }
      // MSG <subject> <sid> [reply] <size>, HMSG <subject> <sid> [reply] <size of headers> <size of all>
      const lastSpace = spaceBefore(text, end)
      const start = end + 2
      const after = start + numberIn(text, lastSpace + 1, end)
      if (after + 2 > bytes.length) return this.#keep(bytes, at, after + 2 - at)
      const subject = at + (hasHeaders ? 5 : 4)
      const subjectEnd = text.indexOf(" ", subject)
      const sidEnd = text.indexOf(" ", subjectEnd + 1)
      const receive = this.#receivers.get(numberIn(text, subjectEnd + 1, sidEnd))
      if (receive === undefined) {
        this.#library.parse(bytes.subarray(at, after + 2))
      } else {
        const replyEnd = hasHeaders ? spaceBefore(text, lastSpace) : lastSpace
        const from = hasHeaders ? start + numberIn(text, replyEnd + 1, lastSpace) : start
        receive(
          ascii ? text.slice(subject, subjectEnd) : bytes.toString("utf8", subject, subjectEnd),
          ascii ? text.slice(sidEnd + 1, replyEnd) : bytes.toString("utf8", sidEnd + 1, replyEnd),
          text.slice(start, from),
          ascii ? text.slice(from, after) : textOrBytes(bytes, from, after),
        )
      }
      at = after + 2
    }
  }

  #keep(bytes: Buffer, from: number, needed: number): void {
    this.#filled = bytes.length - from
    this.#needed = needed
    this.#begun = Buffer.allocUnsafe(needed || this.#filled)
    bytes.copy(this.#begun, 0, from)
  }
}

/** Bytes that are not UTF-8 are copied, so that they don't keep the whole piece. */
const textOrBytes = (bytes: Buffer, from: number, to: number): string | Uint8Array => {
  const text = bytes.toString("utf8", from, to)
  return !text.includes("\ufffd") || isUtf8(bytes.subarray(from, to)) ? text : Buffer.from(bytes.subarray(from, to))
}

export class Incoming {
  readonly #receivers = new Map<number, Receive>()

  constructor(connection: NatsConnection) {
    const { protocol } = connection as unknown as { readonly protocol: Protocol }
    let parser: Parser = new Pieces(protocol.parser, this.#receivers)
    Object.defineProperty(protocol, "parser", {
      get: () => parser,
      set: (library: Parser) => {
        parser = new Pieces(library, this.#receivers)
      },
    })
  }

  /** Sends the messages of a subscription to `receive`, which must not throw, in place of its callback. */
  listen(subscription: Subscription, receive: Receive): void {
    this.#receivers.set(subscription.getID(), receive)
  }

  forget(subscription: Subscription): void {
    this.#receivers.delete(subscription.getID())
  }
}
