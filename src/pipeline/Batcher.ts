/**
 * Has what several fibers ask for done together: a batch is what waits when one before it has ended. So one alone is not delayed,
 * and a flood makes large batches.
 */
import { Effect, Exit, Latch } from "effect"

interface Waiting<In, Out, E> {
  readonly input: In
  readonly done: (exit: Exit.Exit<Out, E>) => void
}

export interface BatcherOptions<In, Out, E> {
  /** Most inputs of a batch, and what their sizes may add up to; one that is larger is alone. */
  readonly inputsMax: number
  readonly sizeMax: number
  readonly size: (input: In) => number
  /** Batches under way at the same time. */
  readonly atOnce: number
  /** Gives an exit for each input, in their order. */
  readonly run: (inputs: ReadonlyArray<In>) => Effect.Effect<ReadonlyArray<Exit.Exit<Out, E>>>
}

export class Batcher<In, Out, E> {
  readonly #options: BatcherOptions<In, Out, E>
  #waiting: Array<Waiting<In, Out, E>> = []
  readonly #arrived = Latch.makeUnsafe(false)

  constructor(options: BatcherOptions<In, Out, E>) {
    this.#options = options
  }

  /** Waits for its outcome, which comes while `run` runs. Interruption before its batch has begun withdraws it. */
  ask(input: In): Effect.Effect<Out, E> {
    return Effect.callback<Out, E>((resume) => {
      const own: Waiting<In, Out, E> = { input, done: resume }
      this.#waiting.push(own)
      this.#arrived.openUnsafe()
      return Effect.sync(() => {
        this.#waiting = this.#waiting.filter((each) => each !== own)
      })
    })
  }

  /** Works for ever. */
  get run(): Effect.Effect<never> {
    const next = Effect.andThen(
      this.#arrived.await,
      Effect.suspend(() => {
        const batch = this.#take()
        return Effect.matchCauseEffect(this.#options.run(batch.map(({ input }) => input)), {
          onSuccess: (exits) => Effect.sync(() => batch.forEach(({ done }, at) => done(exits[at]!))),
          // A defect, or the end of the worker: who waits must not wait for ever.
          onFailure: (cause) =>
            Effect.andThen(
              Effect.sync(() => batch.forEach(({ done }) => done(Exit.failCause(cause)))),
              Effect.failCause(cause),
            ),
        })
      }),
    )
    const works = Array.from({ length: this.#options.atOnce }, () => Effect.forever(next))
    return Effect.andThen(Effect.all(works, { concurrency: "unbounded", discard: true }), Effect.never)
  }

  #take(): ReadonlyArray<Waiting<In, Out, E>> {
    const { inputsMax, size, sizeMax } = this.#options
    let count = 0
    let total = 0
    while (count < this.#waiting.length && count < inputsMax) {
      total += size(this.#waiting[count]!.input)
      if (count > 0 && total > sizeMax) break
      count++
    }
    const batch = this.#waiting.splice(0, count)
    if (this.#waiting.length === 0) this.#arrived.closeUnsafe()
    return batch
  }
}
