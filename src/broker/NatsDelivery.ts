/** One delivery of a JetStream message: its stamp, its headers, and how it is settled. */
import type { MessageTrace } from "../trace/MessageTrace.ts"
import { ownText } from "../contract/ownText.ts"
import type { Delivery } from "./Broker.ts"
import { parseAckSubject } from "../nats/ackSubject.ts"
import { firstHeader, type Headers, headerValue, parseHeaders } from "../nats/headers.ts"
import { readParked } from "./parked.ts"
import type { Life, StreamLives } from "./StreamLife.ts"

/**
 * Least delay of what is handed back, in milliseconds. Without one, nats-server 2.9.10 may take it for a request of ours
 * that is gone already, and then delivers the stream's last message twice and this one only after `ack_wait`.
 */
const handBackMillis = 100

const ack = "+ACK"
const working = "+WPI"

/** One message. Its stamp is in the reply subject or, where it was parked, in its headers. */
export class NatsDelivery implements Delivery {
  readonly subject: string
  readonly seq: number
  readonly timestamp: bigint
  readonly deliveryCount: number
  readonly outcomePrefix: string
  trace: MessageTrace | undefined = undefined
  #payload: string | Uint8Array
  #reply: string
  /** The block, or what was read from it. */
  #headers: string | Headers
  readonly #streams: StreamLives
  readonly #life: Life
  #settled = false

  /** What the message says, as `Receive` gives it. */
  constructor(
    subject: string,
    reply: string,
    headers: string,
    payload: string | Uint8Array,
    streams: StreamLives,
    isParked: boolean,
  ) {
    const { deliveryCount, seq, timestamp } = parseAckSubject(reply)
    const found = isParked ? readParked(parseHeaders(headers)) : undefined
    this.#reply = reply
    this.#streams = streams
    this.#life = streams.current
    this.#headers = found?.headers ?? headers
    this.#payload = payload
    this.deliveryCount = deliveryCount
    this.subject = found?.origin.subject ?? subject
    this.seq = found?.origin.seq ?? seq
    this.timestamp = found?.origin.timestamp ?? timestamp
    this.outcomePrefix = found?.origin.outcomePrefix ?? ""
  }

  get text(): string | undefined {
    return typeof this.#payload === "string" ? this.#payload : undefined
  }

  get payload(): Uint8Array {
    return typeof this.#payload === "string" ? Buffer.from(this.#payload) : this.#payload
  }

  get heldBytes(): number {
    const headers = this.#headers
    const size =
      typeof headers === "string"
        ? headers.length
        : headers.reduce((sum, [name, value]) => sum + name.length + value.length, 0)
    return size + (typeof this.#payload === "string" ? 2 * this.#payload.length : this.#payload.byteLength)
  }

  detach(): void {
    const headers = this.#headers
    if (typeof this.#payload === "string") this.#payload = ownText(this.#payload)
    this.#reply = ownText(this.#reply)
    this.#headers =
      typeof headers === "string"
        ? ownText(headers)
        : headers.map(([name, value]) => [ownText(name), ownText(value)] as const)
  }

  header(name: string): string | undefined {
    const headers = this.#headers
    const value =
      typeof headers === "string" ? firstHeader(headers, name) : headers.find(([wanted]) => wanted === name)?.[1]
    return value === undefined ? undefined : headerValue(value)
  }

  headers(): Headers {
    return typeof this.#headers === "string" ? parseHeaders(this.#headers) : this.#headers
  }

  ack(): void {
    this.#settle(ack)
  }

  retry(delayMillis: number): void {
    this.#settle(`-NAK {"delay":${Math.max(delayMillis, handBackMillis) * 1_000_000}}`)
  }

  working(): void {
    if (!this.#settled) this.#streams.touch(this.#life, this.#reply, working)
  }

  #settle(answer: string): void {
    if (this.#settled) return
    this.#settled = true
    this.trace?.settled(answer === ack ? "ack" : "retry")
    this.#streams.settle(this.#life, this.#reply, answer)
  }
}
