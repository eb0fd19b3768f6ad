/**
 * The broker of a simulation: what the servers keep, and what clients of objectlog do with it.
 *
 * `BrokerConnection` is one worker's way to it.
 */
import { Effect } from "effect"
import type { DeadLetter, ParkedKind } from "../../src/broker/Broker.ts"
import { SimulatedConsumer, type StoredMessage } from "./SimulatedConsumer.ts"
import type { World } from "./World.ts"

export interface StoredEvent {
  readonly subject: string
  readonly payload: string
  readonly messageId: string
}

export interface StoredDeadLetter extends DeadLetter {
  readonly original: StoredMessage
}

/** The duplicate windows: of all streams but the intake, and of the intake. */
const duplicateWindowMillis = 120_000
const intakeWindowMillis = 100

/** Unix nanoseconds at which every simulation starts. */
const epochNanos = 1_763_922_300_000_000_000n

export class SimulatedBroker {
  readonly world: World
  readonly appends: SimulatedConsumer
  readonly queries: SimulatedConsumer
  readonly events: Array<StoredEvent> = []
  readonly deadLetters: Array<StoredDeadLetter> = []
  readonly maxPayload: number
  /** Told of each event when it is stored. */
  readonly listeners: Array<(event: StoredEvent) => void> = []
  /** Told when the servers went down, and when they are back. */
  readonly onRestart: Array<() => void> = []
  up = true
  /** Counts the restarts: what was under way before one never arrives. */
  epoch = 0
  readonly #eventIds = new Map<string, number>()
  readonly #letterIds = new Map<string, number>()
  readonly #parked = new Map<string, SimulatedConsumer>()
  readonly #parkedIds = new Map<string, number>()
  readonly #intakeIds = new Map<string, { readonly at: number; readonly seq: number }>()
  readonly #lastSeq = new Map<string, number>()
  #lastTimestamp = 0n

  constructor(world: World, maxPayload: number) {
    this.world = world
    this.maxPayload = maxPayload
    this.appends = new SimulatedConsumer("logs", world)
    this.queries = new SimulatedConsumer("query", world)
  }

  /** The broker's wall clock, which somebody may have set back. */
  #stamp(): bigint {
    const { brokerClockBehindNanos, clock, prng } = this.world
    const now = epochNanos + clock.currentTimeNanosUnsafe() - brokerClockBehindNanos
    // Within a millisecond of this clock the broker's goes on; two messages may get the same nanosecond.
    const last = this.#lastTimestamp
    const isSameMillisecond = now <= last && last - now < 1_000_000n
    return (this.#lastTimestamp = isSameMillisecond ? last + BigInt(prng.below(2)) : now)
  }

  /** Stores what a client published. */
  store(
    consumer: SimulatedConsumer,
    payload: string,
    headers: Readonly<Record<string, string>>,
    onStored: (message: StoredMessage) => void,
  ): StoredMessage {
    const seq = (this.#lastSeq.get(consumer.name) ?? 0) + 1
    this.#lastSeq.set(consumer.name, seq)
    const message = { subject: consumer.name, seq, timestamp: this.#stamp(), payload: Buffer.from(payload), headers }
    this.world.trace(() => `${consumer.name} #${seq} stored`)
    onStored(message)
    consumer.add(message)
    return message
  }

  /** A client publishes and waits for the confirmation: what was stored, or that none came. */
  publish(
    consumer: SimulatedConsumer,
    payload: string,
    headers: Readonly<Record<string, string>> = {},
    onStored: (message: StoredMessage) => void = () => undefined,
  ): Effect.Effect<"stored" | "duplicate" | "unconfirmed"> {
    const { world } = this
    return Effect.callback((resume) => {
      const answer = (result: "stored" | "duplicate" | "unconfirmed", millis: number) =>
        world.later(millis, () => resume(Effect.succeed(result)))
      if (!this.up) return answer("unconfirmed", 2_000)
      const { epoch } = this
      world.later(world.latency(), () => {
        if (epoch !== this.epoch || !this.up) return answer("unconfirmed", 2_000)
        const id = headers["Nats-Msg-Id"]
        const known = id === undefined ? undefined : this.#intakeIds.get(id)
        let result: "stored" | "duplicate" = "stored"
        if (known !== undefined && world.now() - known.at < intakeWindowMillis) {
          result = "duplicate"
          world.strike("duplicate dropped by the broker")
        } else {
          if (known !== undefined) world.strike("duplicate stored by the broker")
          const message = this.store(consumer, payload, headers, onStored)
          if (id !== undefined) this.#intakeIds.set(id, { at: world.now(), seq: message.seq })
        }
        if (world.prng.chance(world.weather.publishConfirmationLost)) {
          world.strike("publisher's confirmation lost")
          return answer("unconfirmed", 2_000)
        }
        answer(result, world.latency())
      })
    })
  }

  storeEvent(event: StoredEvent): void {
    if (this.#isRepeated(this.#eventIds, event.messageId)) return
    this.events.push(event)
    this.world.trace(() => `${event.subject} ${event.payload.slice(0, 300)}`)
    for (const listener of this.listeners) listener(event)
  }

  storeDeadLetter(letter: StoredDeadLetter): void {
    const { seq, subject, timestamp } = letter.original
    if (this.#isRepeated(this.#letterIds, `${subject}-${seq}-${timestamp}`)) return
    this.world.trace(() => `dead letter ${subject} #${seq} ${letter.code}`)
    this.deadLetters.push(letter)
  }

  /** What is parked for a shard. */
  parked(kind: ParkedKind, shard: string): SimulatedConsumer {
    const name = `parked ${kind} of ${shard}`
    let consumer = this.#parked.get(name)
    if (consumer === undefined) this.#parked.set(name, (consumer = new SimulatedConsumer(name, this.world)))
    return consumer
  }

  /** Sets a message aside with the stamp that it has, once for each stamp. */
  park(kind: ParkedKind, shard: string, message: StoredMessage): void {
    const consumer = this.parked(kind, shard)
    const id = `${consumer.name} ${message.seq} ${message.timestamp}`
    if (this.#isRepeated(this.#parkedIds, id)) return this.world.strike("parked message dropped as a duplicate")
    this.world.strike(kind === "appends" ? "append parked" : "read parked")
    consumer.add(message)
  }

  /** Remembers an id for the duplicate window; whether it was there already. */
  #isRepeated(ids: Map<string, number>, id: string): boolean {
    const known = ids.get(id)
    if (known !== undefined && this.world.now() - known < duplicateWindowMillis) return true
    ids.set(id, this.world.now())
    return false
  }

  unsettled(): number {
    return this.#consumers().reduce((sum, consumer) => sum + consumer.unsettled(), 0)
  }

  #consumers(): ReadonlyArray<SimulatedConsumer> {
    return [this.appends, this.queries, ...this.#parked.values()]
  }

  restart(downMillis: number): void {
    const { world } = this
    if (!this.up) return
    world.strike("broker restarted")
    world.trace(() => "broker down")
    this.up = false
    this.epoch++
    for (const consumer of this.#consumers()) consumer.restart()
    for (const listener of this.onRestart) listener()
    world.later(downMillis, () => {
      world.trace(() => "broker up")
      this.up = true
      for (const listener of this.onRestart) listener()
    })
  }
}
