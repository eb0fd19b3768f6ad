/**
 * Makes sure of the streams and consumers that a worker uses, each for itself: one that is missing or misconfigured concerns
 * only what uses it. What can't be had is tried again without end, said when it changes, and known as a trouble meanwhile.
 */
import type { ConsumerConfig, JetStreamManager } from "@nats-io/jetstream"
import { Effect, Random, Schedule, Semaphore } from "effect"
import type { BrokerUnavailable, Trouble } from "./Broker.ts"
import type { ConnectionState } from "../nats/connection.ts"
import type { ConsumerSpec } from "./consumerRules.ts"
import type { RequestLimits } from "./Intake.ts"
import { isStreamNotFound } from "../nats/jetStreamErrors.ts"
import { resetAhead } from "./maintain.ts"
import { BrokerMisconfigured, ensureConsumer, ensureStream, type Topics } from "./provision.ts"
import type { StreamLives } from "./StreamLife.ts"
import type { StreamRole } from "./streamRules.ts"

/** Between two attempts to recover something; also to provision at the start. */
export const recoveryPauses = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")]).pipe(
  Schedule.jittered,
)

/** First and longest pause before a consumer is recovered that is lost again and again, in milliseconds. */
const lostMillis = { first: 200, longest: 5_000 }

/** Between two attempts to make a missing stream again after a publish that failed. */
const repairPauseMillis = 1_000

/** What the broker allows a request of this consumer, by the consumer's configuration or its own limits. */
const limitsOf = ({ max_batch, max_bytes, max_expires }: ConsumerConfig): RequestLimits => ({
  messages: max_batch || Infinity,
  bytes: max_bytes || Infinity,
  millis: max_expires ? max_expires / 1_000_000 : Infinity,
})

/** A stream that is pulled from, and one that something is stored in: one may serve for the other although it can't for the first. */
const sourceKey = (role: StreamRole): string => `stream of ${role}`
const destinationKey = (role: StreamRole): string => `destination ${role}`

export class Recovery {
  readonly #jsm: JetStreamManager
  readonly #connection: ConnectionState
  readonly #topics: Topics
  readonly #maxPayload: () => number
  readonly #troubles = new Map<string, Trouble>()
  readonly #repairs = new Map<StreamRole, { readonly turn: Semaphore.Semaphore; at: number }>()
  /** Why each consumer was lost the last time. */
  readonly #reasons = new Map<string, string>()

  constructor(jsm: JetStreamManager, connection: ConnectionState, topics: Topics, maxPayload: () => number) {
    this.#jsm = jsm
    this.#connection = connection
    this.#topics = topics
    this.#maxPayload = maxPayload
  }

  get troubles(): ReadonlyArray<Trouble> {
    return [...this.#troubles.values()]
  }

  /** The stream, made again where it is missing. */
  stream(role: StreamRole) {
    return this.#insisted(sourceKey(role), true, ensureStream(this.#jsm, role, this.#topics, "there"))
  }

  /** The consumer, once its stream is known, made again where it is missing; what it allows. */
  consumer(
    spec: ConsumerSpec,
    stream: StreamLives,
    reason: string | undefined,
    failures: number,
  ): Effect.Effect<RequestLimits> {
    const ensured = Effect.gen({ self: this }, function* () {
      yield* stream.sure
      const { name } = stream
      let config = yield* ensureConsumer(this.#jsm, name, spec)
      if (yield* resetAhead(this.#jsm, name, spec.name)) config = yield* ensureConsumer(this.#jsm, name, spec)
      const limits = limitsOf(config)
      if (limits.bytes < this.#maxPayload()) {
        const problem = `consumer ${spec.name}: max_bytes of ${limits.bytes} takes no message of ${this.#maxPayload()} bytes, which max_payload allows; raise it, or the broker's limit max_request_max_bytes`
        return yield* new BrokerMisconfigured({ stream: name, problem })
      }
      return limits
    }).pipe(
      Effect.tapErrorTag("BrokerUnavailable", (error) =>
        Effect.sync(() => {
          if (isStreamNotFound(error)) stream.doubt()
        }),
      ),
    )
    // What was parked is a part of the work.
    const insisted = this.#insisted(`consumer ${spec.filter}`, spec.role !== "parked", ensured)
    if (reason === undefined) return insisted
    const isNews = failures === 0 || this.#reasons.get(spec.filter) !== reason
    this.#reasons.set(spec.filter, reason)
    const line = `broker: the consumer ${spec.name} on ${spec.filter} is lost (${reason}); making sure of it`
    return Effect.gen(function* () {
      yield* isNews ? Effect.logWarning(line) : Effect.logDebug(line)
      const millis = Math.min(lostMillis.first * 2 ** failures, lostMillis.longest)
      yield* Effect.sleep(millis * (0.8 + 0.4 * (yield* Random.next)))
      // The stream may have been made again during the pause; with a consumer, old acknowledgements would count there.
      stream.doubt()
      return yield* insisted
    })
  }

  /** Once after something could not be stored: its stream may be missing. Several that find that out make it again once. */
  repair(role: StreamRole): Effect.Effect<void> {
    let repair = this.#repairs.get(role)
    if (repair === undefined) this.#repairs.set(role, (repair = { turn: Semaphore.makeUnsafe(1), at: 0 }))
    const { turn } = repair
    return Effect.suspend(() =>
      !this.#connection.connected || Date.now() - repair.at < repairPauseMillis
        ? Effect.void
        : this.#tried(destinationKey(role), true, ensureStream(this.#jsm, role, this.#topics, "there")).pipe(
            Effect.ignore,
            Effect.ensuring(Effect.sync(() => (repair.at = Date.now()))),
          ),
    ).pipe(turn.withPermits(1))
  }

  /** Something was stored in the stream: whatever was wrong with it is over. */
  works(role: StreamRole): void {
    this.#troubles.delete(destinationKey(role))
  }

  /** Tries once; what fails is said where it is news. */
  #tried<A>(what: string, disabling: boolean, self: Effect.Effect<A, BrokerUnavailable | BrokerMisconfigured>) {
    return self.pipe(
      Effect.tapError((error) => {
        const text = error.message
        if (this.#troubles.get(what)?.text === text) return Effect.void
        this.#troubles.set(what, { text, disabling })
        return error._tag === "BrokerMisconfigured"
          ? Effect.logError(`${text}; the ${what} is not used until that is put right`)
          : Effect.logWarning(`${text}; trying again`)
      }),
      Effect.tap(() => Effect.sync(() => this.#troubles.delete(what))),
    )
  }

  /** Tries until it succeeds. */
  #insisted<A>(what: string, disabling: boolean, self: Effect.Effect<A, BrokerUnavailable | BrokerMisconfigured>) {
    return this.#tried(what, disabling, this.#connection.whileConnected(self)).pipe(
      Effect.retry(recoveryPauses),
      // The schedule has no end: an error that came through would be a bug.
      Effect.orDie,
      // Who stops pulling has no trouble any more.
      Effect.ensuring(Effect.sync(() => this.#troubles.delete(what))),
    )
  }
}
