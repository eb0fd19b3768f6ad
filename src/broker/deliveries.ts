/**
 * A durable pull consumer's messages as a Stream of deliveries, in chunks as they arrive.
 *
 * The pull protocol is spoken here and not by the client library, for two reasons. A request can be bounded in messages
 * and in bytes at once, so memory is bounded whatever the size of the messages. And at the end the subscription is
 * drained: what the broker has sent already still arrives and is handed back, where the library's `stop` would leave it to
 * `ack_wait`.
 *
 * States. *pulling*: requests are open at the broker, which answers with messages, heartbeats, or the end of a request.
 * *full*: nobody takes, so no request is made. *lost*: no sign for `silenceMillis` although a request is open, or a refusal
 * (consumer deleted, no JetStream): whatever is missing is made again, and new requests replace the old. *closed*.
 */
import { createInbox, type Msg, type NatsConnection, type Subscription } from "@nats-io/transport-node"
import { Effect, Latch, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { Delivery } from "./Broker.ts"
import { blockText, firstHeader, type Headers, headerText, headerValue, parseHeaders } from "./headers.ts"
import { type Origin, readSetAside } from "./setAside.ts"

/** Bytes that one request may bring; it must take the largest message at least. */
const requestBytes = 8 * 1024 * 1024

/** How long a request stays open, how often the broker gives a sign meanwhile, and what silence is too long. */
const expiresMillis = 30_000
const heartbeatMillis = 5_000
const silenceMillis = 3 * heartbeatMillis

/**
 * Least delay of what is handed back, in milliseconds. Without one, nats-server 2.9.10 may take it for a request of ours
 * that is gone already, and then delivers the stream's last message twice and this one only after `ack_wait`.
 */
const handBackMillis = 10

const isNonEmpty = <A>(all: Array<A>): all is [A, ...Array<A>] => all.length > 0

const ack = Buffer.from("+ACK")
const working = Buffer.from("+WPI")

/**
 * One message. Its stamp is in the reply subject, `$JS.ACK[.domain.account].stream.consumer.count.seq.n.nanos.pending`,
 * or, where it was set aside, in its headers.
 */
export class NatsDelivery implements Delivery {
  readonly seq: number
  readonly timestamp: bigint
  readonly deliveryCount: number
  readonly #message: Msg
  readonly #origin: Origin | undefined
  #headers: string | undefined
  #settled = false

  constructor(message: Msg, isSetAside: boolean) {
    const tokens = message.reply!.split(".")
    const first = tokens.length === 9 ? 4 : 6
    this.#message = message
    this.deliveryCount = Number(tokens[first])
    const found = isSetAside ? readSetAside(this.headers()) : undefined
    this.#origin = found?.origin
    if (found === undefined) {
      this.seq = Number(tokens[first + 1])
      this.timestamp = BigInt(tokens[first + 3]!)
    } else {
      this.seq = found.origin.seq
      this.timestamp = found.origin.timestamp
      this.#headers = blockText(found.headers)
    }
  }

  get subject(): string {
    return this.#origin?.subject ?? this.#message.subject
  }

  get outcomePrefix(): string {
    return this.#origin?.outcomePrefix ?? ""
  }

  get payload(): Uint8Array {
    return this.#message.data
  }

  header(name: string): string | undefined {
    const value = firstHeader(this.#headerText(), name)
    return value === undefined ? undefined : headerValue(value)
  }

  headers(): Headers {
    return parseHeaders(this.#headerText())
  }

  #headerText(): string {
    return (this.#headers ??= headerText(this.#message, this.#message.reply!.length))
  }

  ack(): void {
    this.#settle(ack)
  }

  retry(delayMillis: number): void {
    this.#settle(Buffer.from(`-NAK {"delay":${Math.max(delayMillis, handBackMillis) * 1_000_000}}`))
  }

  working(): void {
    if (!this.#settled) this.#message.respond(working)
  }

  #settle(answer: Uint8Array): void {
    if (this.#settled) return
    this.#settled = true
    this.#message.respond(answer)
  }
}

/** What the streams of one consumer in this process hold and have given. */
export interface IntakeCounts {
  buffered: number
  taken: number
}

export interface Options {
  readonly counts: IntakeCounts
  readonly connection: NatsConnection
  readonly stream: string
  readonly consumer: string
  /** Whether its messages carry the stamp of an earlier stream. */
  readonly isSetAside: boolean
  /** Messages that are asked for ahead. */
  readonly pull: number
  /** Makes what is missing again after a pause, longer with each failure in a row; gives the stream's name. */
  readonly recover: (reason: string, failures: number) => Effect.Effect<string>
}

class Intake {
  readonly #options: Options
  readonly #inbox = createInbox()
  readonly #subscription: Subscription
  readonly #watch: NodeJS.Timeout
  #stream: string
  /**
   * Messages still to come for open requests. One sum, since the broker serves open requests in turn and a message does
   * not say which one it is for; the end of a request says how many of its messages won't come.
   */
  #open = 0
  #lastRequest = 0
  /** Requests before this one were given up. */
  #firstRequest = 1
  #buffer: Array<Delivery> = []
  #bufferBytes = 0
  #deliver: (() => void) | undefined
  #scheduled = false
  #lastSign = Date.now()
  /** Why the consumer is lost, until it is recovered. */
  #lost: string | undefined
  readonly #isLost = Latch.makeUnsafe(false)
  #failures = 0
  #closed = false

  constructor(options: Options) {
    this.#options = options
    this.#stream = options.stream
    this.#subscription = options.connection.subscribe(`${this.#inbox}.*`, {
      callback: (error, message) => {
        if (error === null) this.#receive(message)
      },
    })
    this.#watch = setInterval(() => this.#check(), 1_000)
    this.#request()
  }

  readonly take: Effect.Effect<NonEmptyReadonlyArray<Delivery>> = Effect.callback((resume) => {
    this.#deliver = () => {
      const taken = this.#buffer
      if (!isNonEmpty(taken)) return
      this.#options.counts.buffered -= taken.length
      this.#options.counts.taken += taken.length
      this.#buffer = []
      this.#bufferBytes = 0
      this.#deliver = undefined
      this.#request()
      resume(Effect.succeed(taken))
    }
    this.#deliver()
    return Effect.sync(() => (this.#deliver = undefined))
  })

  /** Makes a lost consumer again, whenever it is lost. */
  readonly keep: Effect.Effect<never> = Effect.suspend(() =>
    this.#isLost.await.pipe(
      Effect.andThen(Effect.suspend(() => this.#options.recover(this.#lost ?? "", this.#failures))),
      Effect.tap((stream) => Effect.sync(() => this.#recovered(stream))),
    ),
  ).pipe(Effect.forever)

  /** Stops the pull; hands back what nobody took, and what is on its way. */
  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#watch)
    // In this order: with the subscription still there, the broker would send us what we hand back.
    if (!this.#options.connection.isClosed()) await this.#subscription.drain().catch(() => undefined)
    for (const delivery of this.#buffer) delivery.retry(0)
    this.#options.counts.buffered -= this.#buffer.length
    this.#buffer = []
  }

  /** Asks for as many as there is room for, when half of what was asked for has come. */
  #request(): void {
    const { connection, consumer, pull } = this.#options
    if (this.#closed || this.#lost !== undefined || connection.isClosed()) return
    const expected = this.#buffer.length + this.#open
    if (expected > pull / 2 || this.#bufferBytes >= requestBytes) return
    const batch = pull - expected
    this.#open += batch
    const body = {
      batch,
      max_bytes: Math.max(requestBytes, 2 * (connection.info?.max_payload ?? 0)),
      expires: expiresMillis * 1_000_000,
      idle_heartbeat: heartbeatMillis * 1_000_000,
    }
    connection.publish(`$JS.API.CONSUMER.MSG.NEXT.${this.#stream}.${consumer}`, JSON.stringify(body), {
      reply: `${this.#inbox}.${(++this.#lastRequest).toString(36)}`,
    })
  }

  #receive(message: Msg): void {
    this.#lastSign = Date.now()
    if (message.subject.startsWith(this.#inbox)) return this.#status(message)
    const delivery = new NatsDelivery(message, this.#options.isSetAside)
    this.#failures = 0
    this.#buffer.push(delivery)
    this.#options.counts.buffered++
    this.#bufferBytes += message.data.byteLength
    if (this.#open > 0) this.#open--
    this.#schedule()
  }

  /** Delivers once all that one read of the socket brought is in the buffer, so that chunks are large. */
  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#deliver?.()
      this.#request()
    })
  }

  #status(message: Msg): void {
    const code = message.headers?.code ?? 0
    const number = Number.parseInt(message.subject.slice(this.#inbox.length + 1), 36)
    if (code === 100) {
      this.#failures = 0
      return
    }
    if (number < this.#firstRequest) return
    const text = message.headers?.description ?? ""
    // The request expired, or the next message would exceed its bytes: an ordinary end.
    if (code !== 404 && code !== 408 && !(code === 409 && /max_?bytes|batch completed/i.test(text))) {
      return this.#lose(`${code} ${text}`)
    }
    const left = Number.parseInt(message.headers?.get("Nats-Pending-Messages") ?? "", 10)
    this.#open = Number.isNaN(left) ? 0 : Math.max(0, this.#open - left)
    this.#request()
  }

  #check(): void {
    if (this.#open > 0 && Date.now() - this.#lastSign > silenceMillis) this.#lose("no sign of the consumer")
    else this.#request()
  }

  #lose(reason: string): void {
    if (this.#lost !== undefined || this.#closed) return
    this.#lost = reason
    this.#isLost.openUnsafe()
  }

  #recovered(stream: string): void {
    this.#stream = stream
    this.#failures++
    this.#lost = undefined
    this.#isLost.closeUnsafe()
    this.reconnected()
  }

  /** After a reconnect the broker knows nothing of the requests that were open. */
  reconnected(): void {
    this.#open = 0
    this.#firstRequest = this.#lastRequest + 1
    this.#lastSign = Date.now()
    this.#request()
  }
}

/** The state of a connection; tells all intakes that it was made again. */
export interface Reconnects {
  connected: boolean
  readonly listeners: Set<() => void>
}

/** Never ends. Interruption stops the pull and hands back what was not taken. */
export const deliveries = (options: Options, reconnects: Reconnects): Stream.Stream<Delivery> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const intake = yield* Effect.acquireRelease(
        Effect.sync(() => new Intake(options)),
        (open) => Effect.promise(() => open.close()).pipe(Effect.timeoutOption("2 seconds")),
      )
      const listener = () => intake.reconnected()
      yield* Effect.acquireRelease(
        Effect.sync(() => reconnects.listeners.add(listener)),
        () => Effect.sync(() => reconnects.listeners.delete(listener)),
      )
      yield* Effect.forkScoped(intake.keep)
      return Stream.fromPull(Effect.succeed(intake.take))
    }),
  ).pipe(Stream.scoped)
