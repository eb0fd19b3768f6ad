/**
 * A stream with its durable pull consumer as JetStream keeps them: explicit acknowledgements, unlimited redelivery, one
 * consumer for all workers.
 *
 * As there, an answer counts for the message and not for one of its deliveries: a late hand-back of a worker that was
 * frozen makes the broker deliver again what another worker is busy with.
 */
import { ackWaitMillis } from "../../src/broker/intakeLimits.ts"
import type { World } from "./World.ts"

/** A message as the broker stored it. */
export interface StoredMessage {
  readonly subject: string
  readonly seq: number
  readonly timestamp: bigint
  readonly payload: Uint8Array
  readonly headers: Readonly<Record<string, string>>
}

/** A message in one consumer. */
export interface Held {
  readonly message: StoredMessage
  deliveries: number
  /** Milliseconds; while it is pending. */
  deadline: number
  state: "ready" | "pending" | "delayed" | "done"
}

/** An open request of a connection for messages. */
export interface Pull {
  /** How many more messages it takes. */
  room(): number
  /** Sends deliveries on their way. */
  send(held: ReadonlyArray<Held>): void
}

export class SimulatedConsumer {
  readonly name: string
  readonly #world: World
  readonly messages: Array<Held> = []
  readonly pulls: Array<Pull> = []
  #ready: Array<Held> = []
  readonly #pending = new Set<Held>()
  #recentAcks: Array<Held> = []
  #sweepAt = Infinity

  constructor(name: string, world: World) {
    this.name = name
    this.#world = world
  }

  add(message: StoredMessage): void {
    const held: Held = { message, deliveries: 0, deadline: 0, state: "ready" }
    this.messages.push(held)
    this.#ready.push(held)
    this.dispatch()
  }

  unsettled(): number {
    return this.messages.reduce((sum, held) => sum + (held.state === "done" ? 0 : 1), 0)
  }

  /** Gives what waits to whoever asks, in portions, each to any of them. */
  dispatch(): void {
    const { prng } = this.#world
    while (this.#ready.length > 0) {
      const open = this.pulls.filter((pull) => pull.room() > 0)
      if (open.length === 0) return
      const pull = prng.pick(open)
      const count = Math.min(this.#ready.length, prng.between(1, pull.room()))
      if (count > 1 && prng.chance(this.#world.weather.reorder)) {
        prng.shuffle(this.#ready)
        this.#world.strike("deliveries out of order")
      }
      const portion = this.#ready.splice(0, count)
      for (const held of portion) {
        held.deliveries++
        this.#await(held)
      }
      pull.send(portion)
    }
  }

  ack(held: Held): void {
    if (held.state === "done") return
    if (held.state === "ready") this.#ready = this.#ready.filter((other) => other !== held)
    this.#pending.delete(held)
    held.state = "done"
    this.#recentAcks.push(held)
    if (this.#recentAcks.length > 8) this.#recentAcks.shift()
  }

  retry(held: Held, delayMillis: number): void {
    if (held.state !== "pending") return
    this.#pending.delete(held)
    held.state = "delayed"
    const { deliveries } = held
    this.#world.later(delayMillis, () => {
      if (held.state === "delayed" && held.deliveries === deliveries) this.#again(held)
    })
  }

  working(held: Held): void {
    if (held.state === "pending") held.deadline = this.#world.now() + ackWaitMillis
  }

  /** What a restart does: pulls are gone, delays too, perhaps the latest acknowledgements, and that it was delivered at all. */
  restart(): void {
    const { prng, weather } = this.#world
    this.pulls.length = 0
    for (const held of this.messages) if (held.state === "delayed") this.#await(held)
    for (const held of this.#recentAcks) {
      if (held.state !== "done" || !prng.chance(weather.ackForgotten)) continue
      this.#world.strike("acknowledgement forgotten by the broker")
      if (prng.chance(0.5)) {
        this.#world.strike("delivery forgotten by the broker")
        held.deliveries = 0
      }
      this.#await(held)
    }
    this.#recentAcks = []
  }

  #again(held: Held): void {
    held.state = "ready"
    this.#ready.push(held)
    this.dispatch()
  }

  #await(held: Held): void {
    held.state = "pending"
    held.deadline = this.#world.now() + ackWaitMillis
    this.#pending.add(held)
    if (held.deadline < this.#sweepAt) this.#sweepLater()
  }

  #sweepLater(): void {
    let earliest = Infinity
    for (const held of this.#pending) earliest = Math.min(earliest, held.deadline)
    if (earliest >= this.#sweepAt) return
    this.#sweepAt = earliest
    this.#world.later(earliest - this.#world.now(), () => {
      if (this.#sweepAt !== earliest) return
      this.#sweepAt = Infinity
      this.#sweep()
    })
  }

  #sweep(): void {
    const now = this.#world.now()
    for (const held of Array.from(this.#pending)) {
      if (held.deadline > now) continue
      this.#pending.delete(held)
      this.#world.strike("delivered again after ack_wait")
      this.#world.trace(() => `${this.name} #${held.message.seq} not acknowledged in time`)
      held.state = "ready"
      this.#ready.push(held)
    }
    this.dispatch()
    this.#sweepLater()
  }
}
