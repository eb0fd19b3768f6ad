/** One delivery of a JetStream message: its stamp, its headers, and how it is settled. */
import type { Msg } from "@nats-io/transport-node"
import type { MessageTrace } from "../observe/MessageTrace.ts"
import type { Delivery } from "./Broker.ts"
import { blockText, firstHeader, type Headers, headerText, headerValue, parseHeaders } from "./headers.ts"
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
  readonly payload: Uint8Array
  readonly deliveryCount: number
  readonly outcomePrefix: string
  trace: MessageTrace | undefined = undefined
  // Not the message itself: thousands are under way, and the collector would move its views of bytes with each.
  readonly #reply: string
  readonly #headers: string
  readonly #streams: StreamLives
  readonly #life: Life
  #settled = false

  constructor(message: Msg, streams: StreamLives, isSetAside: boolean) {
    this.#reply = message.reply!
    const tokens = this.#reply.split(".")
    const first = tokens.length === 9 ? 4 : 6
    const headers = headerText(message, this.#reply.length)
    const found = isSetAside ? readSetAside(parseHeaders(headers)) : undefined
    this.#streams = streams
    this.#life = streams.current
    this.#headers = found === undefined ? headers : blockText(found.headers)
    this.payload = message.data
    this.deliveryCount = Number(tokens[first])
    this.subject = found?.origin.subject ?? message.subject
    this.seq = found?.origin.seq ?? Number(tokens[first + 1])
    this.timestamp = found?.origin.timestamp ?? BigInt(tokens[first + 3]!)
    this.outcomePrefix = found?.origin.outcomePrefix ?? ""
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
