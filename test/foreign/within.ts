import { Effect } from "effect"

/** Fails the test when it takes longer. */
export const within =
  (what: string, millis: number, state: () => string = () => "") =>
  <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.timeoutOrElse(self, {
      duration: millis,
      orElse: () => Effect.die(new Error(`expected within ${millis} ms: ${what}; ${state()}`)),
    })
