/**
 * The pull protocol of one consumer. It is spoken here and not by the client library, for two reasons. A request can be bounded in
 * messages and in bytes at once, so memory is bounded whatever the size of the messages. And at the end the subscription is
 * drained: what the broker has sent already still arrives and is handed back, where the library's `stop` would leave it to
 * `ack_wait`.
 */
import { ok } from "node:assert"
import type { NatsConnection, PermissionViolationError } from "@nats-io/transport-node"
import { Effect, Latch } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import { Inbox } from "../nats/Inbox.ts"
import type { Incoming } from "../nats/Incoming.ts"
import { isHeartbeat, isOrdinaryEnd, parseStatus } from "../nats/status.ts"
import type { Delivery } from "./Broker.ts"
import { ackWaitMillis, requestBytes } from "./intakeLimits.ts"
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

/** How long a message may lie here, where all lanes are full, before the broker hears that it is held. */
const heldMillis = 10_000

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
  readonly isParked: boolean
  /**
   * What one request may bring, in messages and bytes; it takes the largest message at least. What was parked is asked for when the
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

/**
 * *lost*: at the beginning; when there is no sign for `silenceMillis` although messages are to come; after a refusal (consumer
 * deleted, no JetStream, no right to pull); and when the connection was made again. The consumer is made sure of, once its
 * stream is known. *pulling*: new requests replace the old, and the broker answers with messages, heartbeats, or the end of a
 * request; where nobody takes, no request is made. *closed*: for good.
 */
type State =
  | {
      readonly _tag: "Lost"
      /** None at the beginning and after a reconnect: nothing is believed to be missing then. */
      readonly reason: string | undefined
    }
  | Pulling
  | { readonly _tag: "Closed" }

interface Pulling {
  readonly _tag: "Pulling"
  readonly limits: RequestLimits
  /** Requests before this one were given up. */
  readonly firstRequest: number
  /**
   * Messages still to come for open requests. One sum, since the broker serves open requests in turn and a message does
   * not say which one it is for; the end of a request says how many of its messages won't come.
   */
  open: number
  /** When anything arrived last, Unix milliseconds. */
  lastSign: number
}

ok(heldMillis + 2 * 1_000 < ackWaitMillis / 2, "one sign that is lost does not have a delivery given to another worker")
ok(silenceMillis < expiresMillis, "silence is noticed before a request ends by itself")

const isNonEmpty = <A>(all: Array<A>): all is [A, ...Array<A>] => all.length > 0

/** Deliveries that nobody has taken yet. */
class Held {
  readonly #counts: IntakeCounts
  readonly #volume: Volume
  #all: Array<Delivery> = []
  /** What they hold here, in bytes. */
  bytes = 0
  /** What they take in the broker: bytes, or code units of a text. */
  #storedBytes = 0
  /** When the oldest one arrived, or when the broker last heard that all are held. */
  #since = 0

  constructor({ counts, volume }: Pick<Options, "counts" | "volume">) {
    this.#counts = counts
    this.#volume = volume
  }

  get length(): number {
    return this.#all.length
  }

  add(delivery: Delivery, storedBytes: number, now: number): void {
    if (this.#all.length === 0) this.#since = now
    this.#all.push(delivery)
    this.bytes += delivery.heldBytes
    this.#storedBytes += storedBytes
    this.#counts.buffered++
  }

  takeAll(): NonEmptyReadonlyArray<Delivery> | undefined {
    const taken = this.#all
    if (!isNonEmpty(taken)) return undefined
    this.#counts.taken += taken.length
    this.#volume.add(taken.length, this.#storedBytes)
    this.#clear()
    return taken
  }

  /** Tells the broker of what lies here for long that it is held. */
  keepAlive(now: number): void {
    if (this.#all.length === 0 || now - this.#since <= heldMillis) return
    this.#since = now
    for (const delivery of this.#all) delivery.working()
  }

  handBack(): void {
    for (const delivery of this.#all) delivery.retry(0)
    this.#clear()
  }

  #clear(): void {
    this.#counts.buffered -= this.#all.length
    this.#all = []
    this.bytes = this.#storedBytes = 0
  }
}

export class Intake {
  readonly #options: Options
  readonly #inbox: Inbox
  readonly #watch: NodeJS.Timeout
  readonly #held: Held
  #state: State = { _tag: "Lost", reason: undefined }
  readonly #isLost = Latch.makeUnsafe(true)
  /** In a row. */
  #failures = 0
  #lastRequest = 0
  /** Gives what is held to whoever waits for it. */
  #deliver: (() => void) | undefined
  #scheduled = false

  constructor(options: Options) {
    const { connection, incoming } = options
    this.#options = options
    this.#held = new Held(options)
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
      const taken = this.#held.takeAll()
      if (taken === undefined) return
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
      Effect.suspend(() => {
        const reason = this.#state._tag === "Lost" ? this.#state.reason : undefined
        return Effect.map(this.#options.recover(reason, this.#failures), (limits) => this.#recovered(limits))
      }),
    ),
  ).pipe(Effect.forever)

  // -------------------------------------------------------------------------------------------------------------------
  // Transitions
  // -------------------------------------------------------------------------------------------------------------------

  /** *pulling* → *lost*. From *lost* and *closed* there is nothing more to lose. */
  #lose(reason: string | undefined): void {
    if (this.#state._tag !== "Pulling") return
    this.#state = { _tag: "Lost", reason }
    this.#isLost.openUnsafe()
  }

  /** *lost* → *pulling*. It may have been closed meanwhile, which stays. */
  #recovered(limits: RequestLimits): void {
    if (this.#state._tag !== "Lost") return
    if (this.#state.reason !== undefined) this.#failures++
    this.#isLost.closeUnsafe()
    const firstRequest = this.#lastRequest + 1
    this.#state = { _tag: "Pulling", limits, firstRequest, open: 0, lastSign: Date.now() }
    if (this.#options.connection.isClosed()) return
    this.#inbox.open()
    this.#request()
  }

  /** *lost* or *pulling* → *closed*. Stops the pull; hands back what nobody took, and what is on its way. */
  async close(): Promise<void> {
    this.#state = { _tag: "Closed" }
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
    this.#held.handBack()
  }

  // -------------------------------------------------------------------------------------------------------------------
  // What makes it lost
  // -------------------------------------------------------------------------------------------------------------------

  /** The broker says so, or nothing: its stream may be another one. */
  #doubt(reason: string): void {
    if (this.#state._tag !== "Pulling") return
    this.#options.stream.doubt()
    this.#lose(reason)
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

  // -------------------------------------------------------------------------------------------------------------------
  // Pulling
  // -------------------------------------------------------------------------------------------------------------------

  /** Asks for as many as there is room for. */
  #request(): void {
    const state = this.#state
    const { bytes, connection, isParked, stream } = this.#options
    if (state._tag !== "Pulling" || !stream.isSure || connection.isClosed()) return
    const pull = Math.min(this.#options.pull, state.limits.messages)
    const expected = this.#held.length + state.open
    if (isParked ? expected > 0 || this.#deliver === undefined : expected > pull / 2 || this.#held.bytes >= bytes) {
      return
    }
    const batch = pull - expected
    state.open += batch
    const expires = Math.min(expiresMillis, state.limits.millis)
    const body = {
      batch,
      max_bytes: Math.min(requestBytes(bytes, connection.info?.max_payload ?? 0), state.limits.bytes),
      expires: expires * 1_000_000,
      // The server takes none that is longer than half of the time.
      idle_heartbeat: Math.min(heartbeatMillis, Math.floor(expires / 3)) * 1_000_000,
    }
    const reply = `${this.#inbox.subject}.${(++this.#lastRequest).toString(36)}`
    connection.publish(this.#subject, JSON.stringify(body), { reply })
  }

  #receive(subject: string, reply: string, headers: string, payload: string | Uint8Array): void {
    const state = this.#state
    const now = Date.now()
    if (state._tag === "Pulling") state.lastSign = now
    if (subject.startsWith(this.#inbox.subject)) return this.#status(subject, headers)
    const { isParked, stream } = this.#options
    this.#failures = 0
    const delivery = new NatsDelivery(subject, reply, headers, payload, stream, isParked)
    this.#held.add(delivery, headers.length + payload.length, now)
    if (state._tag === "Pulling" && state.open > 0) state.open--
    this.#schedule()
  }

  /** Delivers once all that one read of the socket brought is held, so that chunks are large. */
  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#deliver?.()
      this.#request()
    })
  }

  #status(subject: string, headers: string): void {
    const status = parseStatus(headers)
    if (status === undefined) return
    if (isHeartbeat(status)) {
      this.#failures = 0
      return
    }
    const state = this.#state
    const number = Number.parseInt(subject.slice(this.#inbox.subject.length + 1), 36)
    if (state._tag !== "Pulling" || number < state.firstRequest) return
    if (!isOrdinaryEnd(status)) return this.#doubt(`${status.code} ${status.description}`)
    state.open = status.pendingMessages === undefined ? 0 : Math.max(0, state.open - status.pendingMessages)
    this.#request()
  }

  #check(): void {
    const now = Date.now()
    this.#held.keepAlive(now)
    const state = this.#state
    if (state._tag === "Pulling" && state.open > 0 && now - state.lastSign > silenceMillis) {
      this.#doubt("no sign of the consumer")
    } else this.#request()
  }
}
