/** A durable pull consumer's messages as a Stream of deliveries, in chunks as they arrive. */
import { Effect, Stream } from "effect"
import type { ConnectionState } from "../nats/connection.ts"
import type { Delivery } from "./Broker.ts"
import { Intake, type Options } from "./Intake.ts"

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
