/**
 * What a worker sends to the broker by the thousand, events and acknowledgements, written as one piece of the client
 * protocol.
 *
 * The client library encodes each message by itself, in four small byte arrays, which costs more than anything else on the
 * way of an append. Here a message is a piece of text, and all that one turn of the event loop sends becomes bytes at once.
 * It goes out through the library's own queue, in order with everything else.
 */
import type { NatsConnection } from "@nats-io/transport-node"
import type { HeaderBlock } from "./headers.ts"
import { type Inside, insideOf } from "./inside.ts"

/** Text that is handed on before the turn ends, in characters: what is under way stays bounded, and the server can begin. */
const pieceLength = 64 * 1024

const beyondAscii = /[\u0080-\uffff]/

/** One word of the protocol: nothing that ends it, or its line. */
const word = /^[^\0- \u007f]+$/
const lineEnd = Buffer.from("\r\n")

export class Outgoing {
  readonly #connection: NatsConnection
  readonly #protocol: Inside
  #text = ""
  /** The subject and reply of the last message, checked and joined: those of one slice are the same. */
  #lastSubject = ""
  #lastReply: string | undefined
  #lastTo = ""

  constructor(connection: NatsConnection) {
    this.#connection = connection
    this.#protocol = insideOf(connection)
  }

  /**
   * Sends a message. Throws where the connection is closed, for a message beyond `max_payload`, for which the server would
   * close it, and for what is no subject.
   */
  publish(subject: string, reply: string | undefined, headers: HeaderBlock, payload: string | Uint8Array): void {
    const to = this.#to(subject, reply)
    if (typeof payload === "string" && !beyondAscii.test(headers)) {
      const size = headers.length + Buffer.byteLength(payload)
      this.#check(size)
      this.#write(`HPUB ${to} ${headers.length} ${size}\r\n${headers}${payload}\r\n`)
      return
    }
    const bytes = typeof payload === "string" ? Buffer.from(payload) : payload
    const size = headers.length + bytes.byteLength
    this.#check(size)
    this.#flush()
    const [head, block] = [Buffer.from(`HPUB ${to} ${headers.length} ${size}\r\n`), Buffer.from(headers, "latin1")]
    this.#protocol.sendCommand(head, block, bytes, lineEnd)
  }

  /** Answers a delivery; `answer` is ASCII. */
  answer(subject: string, answer: string): void {
    this.#write(`PUB ${subject} ${answer.length}\r\n${answer}\r\n`)
  }

  #to(subject: string, reply: string | undefined): string {
    if (subject === this.#lastSubject && reply === this.#lastReply) return this.#lastTo
    for (const each of reply === undefined ? [subject] : [subject, reply]) {
      if (!word.test(each)) throw new Error(`not a subject: ${JSON.stringify(each.slice(0, 60))}`)
    }
    this.#lastSubject = subject
    this.#lastReply = reply
    return (this.#lastTo = reply === undefined ? subject : `${subject} ${reply}`)
  }

  #check(size: number): void {
    if (this.#connection.isClosed()) throw new Error("the connection is closed")
    const allowed = this.#connection.info?.max_payload ?? size
    if (size > allowed) throw new Error(`a message of ${size} bytes; max_payload is ${allowed}`)
  }

  #write(text: string): void {
    if (this.#text === "") queueMicrotask(() => this.#flush())
    this.#text += text
    if (this.#text.length >= pieceLength) this.#flush()
  }

  #flush(): void {
    if (this.#text === "") return
    const piece = Buffer.from(this.#text)
    this.#text = ""
    this.#protocol.sendCommand(piece)
  }
}
