/** What all parts of a simulation share: time, chance, weather, and the record of what happened. */
import { type Clock, Duration, Effect } from "effect"
import { calm, Coverage, type FaultClass, type Weather } from "./faults.ts"
import type { Processes } from "./Processes.ts"
import { Prng } from "./Prng.ts"

export class World {
  readonly prng: Prng
  readonly coverage = new Coverage()
  readonly clock: Clock.Clock
  /** What must never happen, as it was seen; a run without any is a good one. */
  readonly violations: Array<string> = []
  readonly lines: Array<string> = []
  readonly #traced: boolean
  readonly #processes: Processes
  /** What happens at a moment: one fiber for all of it. */
  readonly #due = new Map<number, Array<() => void>>()
  /** A mistake of the simulation itself. */
  failure: unknown
  weather: Weather
  /** Subtracted from the broker's wall clock. */
  brokerClockBehindNanos = 0n

  constructor(seed: number, clock: Clock.Clock, processes: Processes, weather: Weather, traced: boolean) {
    this.prng = new Prng(seed, 1)
    this.clock = clock
    this.#processes = processes
    this.weather = weather
    this.#traced = traced
  }

  heal(): void {
    this.weather = calm
    this.trace(() => "healed")
  }

  /** Milliseconds since the start. */
  now(): number {
    return this.clock.currentTimeMillisUnsafe()
  }

  /** Writes a line of the trace, which is made only when somebody wants it. */
  trace(line: () => string): void {
    if (this.#traced) this.lines.push(`${this.now()} ${line()}`)
  }

  strike(name: FaultClass, times = 1): void {
    this.coverage.strike(name, times)
  }

  violation(text: string): void {
    // The first ones tell the story; a broken pipeline would make thousands.
    if (this.violations.length < 20) this.violations.push(`${this.now()} ${text}`)
    this.trace(() => `VIOLATION ${text}`)
  }

  /** Does something later, on the servers' side: no worker's death prevents it. */
  later(millis: number, event: () => void): void {
    const run = () => {
      try {
        event()
      } catch (error) {
        this.failure ??= error
      }
    }
    if (millis <= 0) return this.#processes.add(this.#processes.servers, run)
    const at = this.now() + Math.ceil(millis)
    const due = this.#due.get(at)
    if (due !== undefined) return void due.push(run)
    const first = [run]
    this.#due.set(at, first)
    const wake = Effect.sync(() => {
      this.#due.delete(at)
      for (const each of first) each()
    })
    Effect.runFork(Effect.andThen(this.clock.sleep(Duration.millis(at - this.now())), wake), {
      scheduler: this.#processes.servers,
    })
  }

  /** How long a frame to or from the broker is under way, in milliseconds. */
  latency(): number {
    return this.#upTo(this.weather.brokerMillis)
  }

  /** How long a statement or its answer is under way, in milliseconds. */
  statementLatency(): number {
    return this.#upTo(this.weather.statementMillis)
  }

  #upTo(millis: number): number {
    return millis === 0 ? 0 : this.prng.below(millis + 1)
  }
}
