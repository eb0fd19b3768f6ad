/**
 * An amount that may be in use at the same time, given first come, first served: who asks for much waits for those before
 * it and not for those after it, which a semaphore lets pass as long as they are smaller.
 */
import { Effect } from "effect"

interface Waiter {
  readonly cost: number
  readonly enter: () => void
}

export class Window {
  readonly #size: number
  #free: number
  readonly #waiting = new Set<Waiter>()

  constructor(size: number) {
    this.#size = size
    this.#free = size
  }

  /** Runs an effect while it holds `cost` of the amount; what costs more than there is has all of it for itself. */
  within(cost: number): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R> {
    const share = Math.min(cost, this.#size)
    return (self) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.andThen(
          restore(this.#take(share)),
          Effect.ensuring(
            restore(self),
            Effect.sync(() => this.#give(share)),
          ),
        ),
      )
  }

  #take(cost: number): Effect.Effect<void> {
    return Effect.suspend(() => {
      let waiter: Waiter | undefined
      return Effect.callback<void>((resume) => {
        waiter = { cost, enter: () => resume(Effect.void) }
        this.#waiting.add(waiter)
        this.#admit()
      }).pipe(
        Effect.onInterrupt(() =>
          Effect.sync(() => {
            // Where it does not wait any more it was let in, and has not come to know it.
            if (waiter !== undefined && !this.#waiting.delete(waiter)) this.#free += cost
            this.#admit()
          }),
        ),
      )
    })
  }

  #give(cost: number): void {
    this.#free += cost
    this.#admit()
  }

  #admit(): void {
    for (const waiter of this.#waiting) {
      if (waiter.cost > this.#free) return
      this.#free -= waiter.cost
      this.#waiting.delete(waiter)
      waiter.enter()
    }
  }
}
