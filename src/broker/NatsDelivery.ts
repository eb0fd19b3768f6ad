/** One delivery of a JetStream message: its stamp, its headers, and how it is settled. */
import type { MessageTrace } from "../observe/MessageTrace.ts"
import type { Delivery } from "./Broker.ts"
import { blockText, firstHeader, type Headers, headerValue, parseHeaders } from "./headers.ts"
import { readSetAside } from "./setAside.ts"
import type { Life, StreamLives } from "./StreamLife.ts"

/**
 * Least delay of what is handed back, in milliseconds. Without one, nats-server 2.9.10 may take it for a request of ours
 * that is gone already, and then delivers the stream's last message twice and this one only after `ack_wait`.
 */
const handBackMillis = 100

const ack = "+ACK"
const working = "+WPI"

/**
 * One message. Its stamp is in the reply subject, `$JS.ACK[.domain.account].stream.consumer.count.seq.n.nanos.pending`,
 * or, where it was set aside, in its headers.
 */
export class NatsDelivery implements Delivery {
  readonly subject: string
  readonly seq: number
  readonly timestamp: bigint
  readonly deliveryCount: number
  readonly outcomePrefix: string
  trace: MessageTrace | undefined = undefined
  readonly #payload: string | Uint8Array
  readonly #reply: string
  readonly #headers: string
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
    isSetAside: boolean,
  ) {
    const tokens = reply.split(".")
    const first = tokens.length === 9 ? 4 : 6
    const found = isSetAside ? readSetAside(parseHeaders(headers)) : undefined
    this.#reply = reply
    this.#streams = streams
    this.#life = streams.current
    this.#headers = found === undefined ? headers : blockText(found.headers)
    this.#payload = payload
    this.deliveryCount = Number(tokens[first])
    this.subject = found?.origin.subject ?? subject
    this.seq = found?.origin.seq ?? Number(tokens[first + 1])
    this.timestamp = found?.origin.timestamp ?? BigInt(tokens[first + 3]!)
    this.outcomePrefix = found?.origin.outcomePrefix ?? ""
  }

  get text(): string | undefined {
    return typeof this.#payload === "string" ? this.#payload : undefined
  }

  get payload(): Uint8Array {
    return typeof this.#payload === "string" ? Buffer.from(this.#payload) : this.#payload
  }

  header(name: string): string | undefined {
    const value = firstHeader(this.#headers, name)
    return value === undefined ? undefined : headerValue(value)
  }

  headers(): Headers {
    return parseHeaders(this.#headers)
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
