/**
 * Publishes appends and takes the broker's acknowledgements: each message has its own token below one inbox, so there is
 * no promise, timer or subscription for a single one.
 *
 * An append that is not acknowledged is sent again until it is. Its `Nats-Msg-Id` makes sure that it is stored once.
 */
import { createInbox, type NatsConnection } from "@nats-io/transport-node"
import { idBlock } from "../nats/headers.ts"
import { Outgoing } from "../nats/Outgoing.ts"
import type { Append } from "./Append.ts"
import type { Texts } from "./Texts.ts"

/** Unacknowledged messages, and bytes in them, beyond which nothing is sent: what may wait in the connection's buffer. */
const unconfirmedMax = 32_768
const unconfirmedBytesMax = 32 * 1024 * 1024

/** An acknowledgement that takes longer is taken as lost. */
const ackMillis = 5_000
/** After a refusal (no stream, no quorum) it is sent again after this long. */
const refusedPauseMillis = 500

interface Sent {
  readonly append: Append
  readonly bytes: number
  again: number
}

const bodyOf = (texts: Texts, { number, object }: Append): string =>
  `{"id":${object.id},"log":${texts.logJson(object.ordinal, number)},"request_id":"${texts.name(object.ordinal, number)}"}`

/** The sequence number in `{"stream":"…","seq":17}`. */
const seqIn = /"seq":\s?(\d{1,16})/

export interface PublisherOptions {
  readonly connection: NatsConnection
  readonly topic: string
  readonly texts: Texts
  readonly now: () => number
  readonly stored: (append: Append, seq: number, now: number) => void
}

export class Publisher {
  readonly #options: PublisherOptions
  readonly #outgoing: Outgoing
  readonly #inbox = createInbox()
  /** By token, in the order of sending. */
  readonly #waiting = new Map<number, Sent>()
  #bytes = 0
  #token = 0
  /** Why the broker refused the latest that it refused. */
  refusal: string | undefined

  constructor(options: PublisherOptions) {
    this.#options = options
    this.#outgoing = new Outgoing(options.connection)
    options.connection.subscribe(`${this.#inbox}.*`, {
      callback: (error, message) => {
        if (error === null) this.#acknowledged(message.subject, message.data)
      },
    })
  }

  get unconfirmed(): number {
    return this.#waiting.size
  }

  get isFull(): boolean {
    return this.#waiting.size >= unconfirmedMax || this.#bytes >= unconfirmedBytesMax
  }

  send(append: Append): void {
    const { now, texts, topic } = this.#options
    const payload = bodyOf(texts, append)
    append.object.sending(append)
    const token = this.#token++
    const bytes = Buffer.byteLength(payload)
    this.#waiting.set(token, { append, bytes, again: now() + ackMillis })
    this.#bytes += bytes
    const headers = idBlock(texts.name(append.object.ordinal, append.number))
    this.#outgoing.publish(topic, `${this.#inbox}.${token.toString(36)}`, headers, payload)
  }

  /** Sends again what was not acknowledged in time; after a reconnect, all: the connection drops what it held. */
  sendAgain(all: boolean): void {
    const now = this.#options.now()
    const late: Array<readonly [number, Sent]> = []
    for (const waiting of this.#waiting) {
      // Those that were sent later are due later, but for refusals, which are few or all.
      if (!all && waiting[1].again > now) break
      late.push(waiting)
    }
    // Sending adds to what waits, so it comes after the loop over that.
    for (const [token, sent] of late) {
      this.#forget(token, sent)
      // Whatever says that it is stored will do.
      if (sent.append.storedAt === undefined) this.send(sent.append)
    }
  }

  #forget(token: number, sent: Sent): void {
    this.#waiting.delete(token)
    this.#bytes -= sent.bytes
  }

  #acknowledged(subject: string, data: Uint8Array): void {
    const token = Number.parseInt(subject.slice(this.#inbox.length + 1), 36)
    const sent = this.#waiting.get(token)
    if (sent === undefined) return
    // `{"stream":…` confirms, `{"error":…` refuses; where no stream is, an empty message comes.
    if (data[2] !== 0x73) {
      this.refusal = data.length === 0 ? "no stream takes that subject" : Buffer.from(data).toString()
      sent.again = this.#options.now() + refusedPauseMillis
      return
    }
    this.#forget(token, sent)
    this.refusal = undefined
    const text = Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("latin1")
    this.#options.stored(sent.append, Number(seqIn.exec(text)?.[1]), this.#options.now())
  }
}
