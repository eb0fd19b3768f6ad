/**
 * The parts of a worker that must get somewhere while they hold work: lanes, reads, refusals. Each registers itself, and the
 * watchdog looks at them.
 */
import { Context, Effect, type Scope } from "effect"
import type { Subject } from "./definitions.ts"

export interface Part {
  readonly name: string
  readonly subject: Subject
  /** How much work it holds now. */
  readonly held: () => number
  /** Another value whenever it got anywhere. An attempt that failed counts: whoever tries is not stuck. */
  readonly moves: () => number
}

/** The parts of this process. */
export const Parts = Context.Reference<Set<Part>>("objectlog/observe/Parts", { defaultValue: () => new Set() })

/** Has a part looked at until the scope closes. */
export const watched = (part: Part): Effect.Effect<void, never, Scope.Scope> =>
  Effect.gen(function* () {
    const parts = yield* Parts
    yield* Effect.acquireRelease(
      Effect.sync(() => parts.add(part)),
      () => Effect.sync(() => parts.delete(part)),
    )
  })
