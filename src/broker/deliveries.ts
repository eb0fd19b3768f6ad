/**
 * A durable pull consumer's messages as a Stream of deliveries, in chunks as they arrive.
 *
 * The pull protocol is spoken here and not by the client library, for two reasons. A request can be bounded in messages
 * and in bytes at once, so memory is bounded whatever the size of the messages. And at the end the subscription is
 * drained: what the broker has sent already still arrives and is handed back, where the library's `stop` would leave it to
 * `ack_wait`.
 *
 * States. *lost*: at the beginning; when there is no sign for `silenceMillis` although a request is open; after a refusal
 * (consumer deleted, no JetStream, no right to pull); and when the connection was made again. The consumer is made sure of,
 * once its stream is known, and new requests replace the old. *pulling*: requests are open at the broker, which answers with
 * messages, heartbeats, or the end of a request. *full*: nobody takes, so no request is made. *closed*.
 */
import type { NatsConnection, PermissionViolationError } from "@nats-io/transport-node"
import { Effect, Latch, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { Delivery } from "./Broker.ts"
import type { ConnectionState } from "../nats/connection.ts"
import { firstHeader } from "../nats/headers.ts"
import { Inbox } from "../nats/Inbox.ts"
import type { Incoming } from "../nats/Incoming.ts"
import { requestBytes } from "./intakeLimits.ts"
import { NatsDelivery } from "./NatsDelivery.ts"
import type { StreamLives } from "./StreamLife.ts"
import type { Volume } from "./Volume.ts"

/** How long a request stays open, how often the broker gives a sign meanwhile, and what silence is too long. */
const expiresMillis = 30_000
const heartbeatMillis = 5_000
const silenceMillis = 3 * heartbeatMillis

/** What the broker allows a request of a consumer; a larger one is refused as a whole. */
export interface RequestLimits {
  readonly messages: number
  readonly bytes: number
  readonly millis: number
}

const noLimits: RequestLimits = { messages: Infinity, bytes: Infinity, millis: Infinity }

/** How long a message may lie here, where all lanes are full, before the broker hears that it is held. */
const bufferedMillis = 10_000

const isNonEmpty = <A>(all: Array<A>): all is [A, ...Array<A>] => all.length > 0

/** What the streams of one consumer in this process hold and have given. */
export interface IntakeCounts {
  buffered: number
  taken: number
}

export interface Options {
  readonly counts: IntakeCounts
  readonly volume: Volume
  readonly connection: NatsConnection
  readonly incoming: Incoming
  /** Shared by all consumers of the stream. */
  readonly stream: StreamLives
  readonly consumer: string
  /** Whether its messages carry the stamp of an earlier stream. */
  readonly isSetAside: boolean
  /**
   * What one request may bring, in messages and bytes; it takes the largest message at least. What was set aside is asked for when the
   * request before has been dealt with, and everything else ahead: so it holds no more than that, and twice that.
   */
  readonly pull: number
  readonly bytes: number
  /**
   * Makes sure of the consumer, after a pause that is longer with each failure in a row. Without a reason, at the beginning
   * and after a reconnect, nothing is believed to be missing, and there is no pause.
   */
  readonly recover: (reason: string | undefined, failures: number) => Effect.Effect<RequestLimits>
}

/** How a request can end that is nothing but its end: no message, its time is over, or the next one exceeds its bytes. */
const isOrdinaryEnd = (code: number, text: string): boolean =>
  code === 404 || code === 408 || (code === 409 && /^(?:message size exceeds maxbytes|batch completed)/i.test(text))

class Intake {
  readonly #options: Options
  readonly #inbox: Inbox
  readonly #watch: NodeJS.Timeout
  #limits = noLimits
  /**
   * Messages still to come for open requests. One sum, since the broker serves open requests in turn and a message does
   * not say which one it is for; the end of a request says how many of its messages won't come.
   */
  #open = 0
  #lastRequest = 0
  /** Requests before this one were given up. */
  #firstRequest = 1
  #buffer: Array<Delivery> = []
  /** What they hold, and what they take in the broker: bytes, or code units of a text. */
  #bufferBytes = 0
  #storedBytes = 0
  /** When the oldest one arrived, or when the broker last heard that all are held. */
  #bufferedSince = 0
  #deliver: (() => void) | undefined
  #scheduled = false
  #lastSign = Date.now()
  /** The consumer is lost, until it is recovered; why, but for the beginning and a reconnect. */
  #lost: { readonly reason: string | undefined } | undefined = { reason: undefined }
  readonly #isLost = Latch.makeUnsafe(true)
  #failures = 0
  #closed = false

  constructor(options: Options) {
    const { connection, incoming } = options
    this.#options = options
    this.#inbox = new Inbox(
      connection,
      incoming,
      (...message) => this.#receive(...message),
      (text) => this.#lose(text),
    )
    this.#watch = setInterval(() => this.#check(), 1_000)
  }

  /** Where requests are published. */
  get #subject(): string {
    const { consumer, stream } = this.#options
    return `$JS.API.CONSUMER.MSG.NEXT.${stream.name}.${consumer}`
  }

  readonly take: Effect.Effect<NonEmptyReadonlyArray<Delivery>> = Effect.callback((resume) => {
    this.#deliver = () => {
      const taken = this.#buffer
      if (!isNonEmpty(taken)) return
      this.#options.counts.buffered -= taken.length
      this.#options.counts.taken += taken.length
      this.#options.volume.add(taken.length, this.#storedBytes)
      this.#buffer = []
      this.#bufferBytes = this.#storedBytes = 0
      this.#deliver = undefined
      this.#request()
      resume(Effect.succeed(taken))
    }
    this.#deliver()
    this.#request()
    return Effect.sync(() => (this.#deliver = undefined))
  })

  /** Makes a lost consumer again, whenever it is lost. */
  readonly keep: Effect.Effect<never> = Effect.suspend(() =>
    Effect.andThen(
      this.#isLost.await,
      Effect.suspend(() =>
        Effect.map(this.#options.recover(this.#lost?.reason, this.#failures), (limits) => this.#recovered(limits)),
      ),
    ),
  ).pipe(Effect.forever)

  /** Stops the pull; hands back what nobody took, and what is on its way. */
  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#watch)
    // In this order: with the subscription still there, the broker would send us what we hand back.
    const { connection, consumer, stream } = this.#options
    if (!connection.isClosed()) {
      await this.#inbox.drain()
      // Being asked for the consumer makes the server forget requests that nobody listens for any more. As long as it has
      // one, nats-server 2.9 mistakes what is handed back: the last message comes twice, and this one after `ack_wait`.
      const subject = `$JS.API.CONSUMER.INFO.${stream.name}.${consumer}`
      await connection.request(subject, "", { timeout: 1_000 }).catch(() => undefined)
    }
    for (const delivery of this.#buffer) delivery.retry(0)
    this.#options.counts.buffered -= this.#buffer.length
    this.#buffer = []
  }

  /** Asks for as many as there is room for. */
  #request(): void {
    const { bytes, connection, isSetAside, stream } = this.#options
    if (this.#closed || this.#lost !== undefined || !stream.isSure || connection.isClosed()) return
    const pull = Math.min(this.#options.pull, this.#limits.messages)
    const expected = this.#buffer.length + this.#open
    if (isSetAside ? expected > 0 || this.#deliver === undefined : expected > pull / 2 || this.#bufferBytes >= bytes) {
      return
    }
    const batch = pull - expected
    this.#open += batch
    const expires = Math.min(expiresMillis, this.#limits.millis)
    const body = {
      batch,
      max_bytes: Math.min(requestBytes(bytes, connection.info?.max_payload ?? 0), this.#limits.bytes),
      expires: expires * 1_000_000,
      // The server takes none that is longer than half of the time.
      idle_heartbeat: Math.min(heartbeatMillis, Math.floor(expires / 3)) * 1_000_000,
    }
    const reply = `${this.#inbox.subject}.${(++this.#lastRequest).toString(36)}`
    connection.publish(this.#subject, JSON.stringify(body), { reply })
  }

  #receive(subject: string, reply: string, headers: string, payload: string | Uint8Array): void {
    this.#lastSign = Date.now()
    if (subject.startsWith(this.#inbox.subject)) return this.#status(subject, headers)
    const { isSetAside, stream } = this.#options
    const delivery = new NatsDelivery(subject, reply, headers, payload, stream, isSetAside)
    this.#failures = 0
    if (this.#buffer.length === 0) this.#bufferedSince = this.#lastSign
    this.#buffer.push(delivery)
    this.#options.counts.buffered++
    this.#bufferBytes += delivery.heldBytes
    this.#storedBytes += headers.length + payload.length
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

  /** `NATS/1.0 <code> <description>` */
  #status(subject: string, headers: string): void {
    const [, digits, text = ""] = /^NATS\/1\.0 (\d+) ?([^\r]*)/.exec(headers) ?? []
    if (digits === undefined) return
    const code = Number(digits)
    const number = Number.parseInt(subject.slice(this.#inbox.subject.length + 1), 36)
    if (code === 100) {
      this.#failures = 0
      return
    }
    if (number < this.#firstRequest) return
    if (!isOrdinaryEnd(code, text)) return this.#doubt(`${code} ${text}`)
    const left = Number.parseInt(firstHeader(headers, "Nats-Pending-Messages") ?? "", 10)
    this.#open = Number.isNaN(left) ? 0 : Math.max(0, this.#open - left)
    this.#request()
  }

  #check(): void {
    const now = Date.now()
    if (this.#buffer.length > 0 && now - this.#bufferedSince > bufferedMillis) {
      this.#bufferedSince = now
      for (const delivery of this.#buffer) delivery.working()
    }
    if (this.#open > 0 && now - this.#lastSign > silenceMillis) this.#doubt("no sign of the consumer")
    else this.#request()
  }

  /** The broker says so, or nothing: its stream may be another one. */
  #doubt(reason: string): void {
    if (this.#closed || this.#lost !== undefined) return
    this.#options.stream.doubt()
    this.#lose(reason)
  }

  #lose(reason: string | undefined): void {
    if (this.#closed || this.#lost !== undefined) return
    this.#lost = { reason }
    this.#isLost.openUnsafe()
  }

  /** The broker knows nothing of the requests that were open. */
  reconnected(): void {
    this.#lose(undefined)
  }

  /** The consumer went with its stream. */
  streamChanged(): void {
    this.#lose("its stream was made again")
  }

  violated({ message, operation, subject }: PermissionViolationError): void {
    if (operation === "publish" && subject === this.#subject) this.#lose(message)
  }

  #recovered(limits: RequestLimits): void {
    if (this.#lost?.reason !== undefined) this.#failures++
    this.#limits = limits
    this.#lost = undefined
    this.#isLost.closeUnsafe()
    this.#open = 0
    this.#firstRequest = this.#lastRequest + 1
    this.#lastSign = Date.now()
    if (this.#closed || this.#options.connection.isClosed()) return
    this.#inbox.open()
    this.#request()
  }
}

/** Never ends. Interruption stops the pull and hands back what was not taken. */
export const deliveries = (options: Options, state: ConnectionState): Stream.Stream<Delivery> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const intake = yield* Effect.acquireRelease(
        Effect.sync(() => new Intake(options)),
        (open) => Effect.promise(() => open.close()).pipe(Effect.timeoutOption("2 seconds")),
      )
      const listen = <A>(listeners: Set<A>, listener: A) =>
        Effect.acquireRelease(
          Effect.sync(() => listeners.add(listener)),
          () => Effect.sync(() => listeners.delete(listener)),
        )
      yield* listen(state.onReconnect, () => intake.reconnected())
      yield* listen(state.onViolation, (violation) => intake.violated(violation))
      yield* listen(options.stream.onChange, () => intake.streamChanged())
      yield* Effect.forkScoped(intake.keep)
      return Stream.fromPull(Effect.succeed(intake.take))
    }),
  ).pipe(Stream.scoped)
