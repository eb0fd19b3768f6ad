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
import { Effect, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { Delivery } from "./Broker.ts"
import { consumerName } from "./provision.ts"

/** Bytes that one request may bring; it must take the largest message at least. */
const requestBytes = 8 * 1024 * 1024

/** How long a request stays open, how often the broker gives a sign meanwhile, and what silence is too long. */
const expiresMillis = 30_000
const heartbeatMillis = 5_000
const silenceMillis = 3 * heartbeatMillis

const ack = Buffer.from("+ACK")
const working = Buffer.from("+WPI")
const nak = Buffer.from("-NAK")

/** One message. Its stamp is in the reply subject, `$JS.ACK[.domain.account].stream.consumer.count.seq.n.nanos.pending`. */
export class NatsDelivery implements Delivery {
  readonly seq: number
  readonly timestamp: bigint
  readonly deliveryCount: number
  readonly #message: Msg
  #settled = false

  constructor(message: Msg) {
    const tokens = message.reply!.split(".")
    const first = tokens.length === 9 ? 4 : 6
    this.#message = message
    this.deliveryCount = Number(tokens[first])
    this.seq = Number(tokens[first + 1])
    this.timestamp = BigInt(tokens[first + 3]!)
  }

  get subject(): string {
    return this.#message.subject
  }

  get payload(): Uint8Array {
    return this.#message.data
  }

  header(name: string): string | undefined {
    const all = this.#message.headers
    return all === undefined ? undefined : all.values(name)[0]
  }

  /** All headers with their values. */
  headers(): ReadonlyArray<readonly [string, ReadonlyArray<string>]> {
    return [...(this.#message.headers ?? [])]
  }

  ack(): void {
    this.#settle(ack)
  }

  retry(delayMillis: number): void {
    this.#settle(delayMillis === 0 ? nak : Buffer.from(`-NAK {"delay":${delayMillis * 1_000_000}}`))
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

export interface Options {
  readonly connection: NatsConnection
  readonly stream: string
  /** Messages that are asked for ahead. */
  readonly pull: number
  /** Makes what is missing again, after a pause. */
  readonly recover: (reason: string) => Promise<void>
}

class Intake {
  readonly #options: Options
  readonly #inbox = createInbox()
  readonly #subscription: Subscription
  readonly #watch: NodeJS.Timeout
  /** Open requests by number, in the order in which the broker serves them, with the messages still to come. */
  readonly #requests = new Map<number, number>()
  #lastRequest = 0
  #buffer: Array<Delivery> = []
  #deliver: (() => void) | undefined
  #scheduled = false
  #lastSign = Date.now()
  #recovering = false
  #closed = false

  constructor(options: Options) {
    this.#options = options
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
      const [first, ...rest] = this.#buffer
      if (first === undefined) return
      this.#buffer = []
      this.#deliver = undefined
      this.#request()
      resume(Effect.succeed([first, ...rest]))
    }
    this.#deliver()
    return Effect.sync(() => (this.#deliver = undefined))
  })

  /** Stops the pull; hands back what nobody took, and what is on its way. */
  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#watch)
    for (const delivery of this.#buffer) delivery.retry(0)
    this.#buffer = []
    if (!this.#options.connection.isClosed()) await this.#subscription.drain()
  }

  /** Asks for as many as there is room for, when half of what was asked for has come. */
  #request(): void {
    const { connection, pull, stream } = this.#options
    if (this.#closed || this.#recovering || connection.isClosed()) return
    let expected = this.#buffer.length
    for (const left of this.#requests.values()) expected += left
    if (expected > pull / 2) return
    const number = ++this.#lastRequest
    const batch = pull - expected
    this.#requests.set(number, batch)
    const body = {
      batch,
      max_bytes: Math.max(requestBytes, 2 * (connection.info?.max_payload ?? 0)),
      expires: expiresMillis * 1_000_000,
      idle_heartbeat: heartbeatMillis * 1_000_000,
    }
    connection.publish(`$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumerName}`, JSON.stringify(body), {
      reply: `${this.#inbox}.${number.toString(36)}`,
    })
  }

  #receive(message: Msg): void {
    this.#lastSign = Date.now()
    if (message.subject.startsWith(this.#inbox)) return this.#status(message)
    const delivery = new NatsDelivery(message)
    if (this.#closed) return delivery.retry(0)
    this.#buffer.push(delivery)
    for (const [number, left] of this.#requests) {
      if (left > 1) this.#requests.set(number, left - 1)
      else this.#requests.delete(number)
      break
    }
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
    if (code === 100) return
    this.#requests.delete(Number.parseInt(message.subject.slice(this.#inbox.length + 1), 36))
    const text = message.headers?.description ?? ""
    if (code === 503 || /deleted|leadership|shutdown/i.test(text)) void this.#recover(`${code} ${text}`)
    else this.#request()
  }

  #check(): void {
    const { connection } = this.#options
    if (this.#requests.size > 0 && Date.now() - this.#lastSign > silenceMillis)
      void this.#recover("no sign of the consumer")
    else if (!connection.isClosed()) this.#request()
  }

  async #recover(reason: string): Promise<void> {
    if (this.#recovering || this.#closed) return
    this.#recovering = true
    this.#requests.clear()
    await this.#options.recover(reason)
    this.#recovering = false
    this.#lastSign = Date.now()
    this.#request()
  }

  /** After a reconnect the broker knows nothing of the requests that were open. */
  reconnected(): void {
    this.#requests.clear()
    this.#lastSign = Date.now()
    this.#request()
  }
}

/** Tells all intakes of a connection that it was made again. */
export interface Reconnects {
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
      return Stream.fromPull(Effect.succeed(intake.take))
    }),
  ).pipe(Stream.scoped)
