/** A nats-server whose configuration a test writes, and changes while it runs; gone with the scope. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Context, Effect, FileSystem, Layer, Schedule } from "effect"
import { type ChildProcess, spawn } from "node:child_process"
import { freePort } from "../../src/embedded/freePort.ts"
import { findNatsServer } from "../../src/embedded/natsBinary.ts"
import { basePort, temporary } from "../../bench/servers/privateServers.ts"

const started = "Server is ready"
const reloaded = "Reloaded server configuration"

export class ConfiguredNats extends Context.Service<
  ConfiguredNats,
  {
    /** The address, with a login where one is given as `user:password`. */
    readonly url: (login?: string) => string
    /** Starts it with this added to its configuration, or with another one again. */
    readonly start: (configuration: string) => Effect.Effect<void>
    readonly stop: Effect.Effect<void>
    /** How often it has said so since its start. */
    readonly said: (text: string) => number
    /** Changes the configuration of the running server. */
    readonly reload: (configuration: string) => Effect.Effect<void>
  }
>()("test/embedded/ConfiguredNats") {
  static readonly layer = Layer.effect(
    ConfiguredNats,
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* temporary
      const command = yield* findNatsServer
      const port = (yield* freePort(basePort + 5, "127.0.0.1"))!
      const file = `${folder}/nats.conf`
      let child: ChildProcess | undefined
      let output = ""
      const write = (configuration: string) =>
        fs.writeFileString(
          file,
          `listen: "127.0.0.1:${port}"\nserver_name: "test"\n${/^jetstream/m.test(configuration) ? "" : `jetstream: { store_dir: "${folder}" }\n`}${configuration.replaceAll("STORE", folder)}\n`,
        )
      const untilSaid = (text: string, times: number) =>
        Effect.sync(() => output.split(text).length > times).pipe(
          Effect.repeat({ until: (found) => found, schedule: Schedule.spaced("10 millis") }),
          Effect.timeoutOrElse({
            duration: "10 seconds",
            orElse: () => Effect.die(new Error(`nats-server did not say "${text}": ${output}`)),
          }),
        )
      const stop = Effect.callback<void>((resume) => {
        const ending = child
        child = undefined
        if (ending === undefined || ending.exitCode !== null) return resume(Effect.void)
        ending.once("exit", () => resume(Effect.void))
        ending.kill("SIGTERM")
      })
      yield* Effect.addFinalizer(() => stop)
      return {
        url: (login) => `nats://${login === undefined ? "" : `${login}@`}127.0.0.1:${port}`,
        stop,
        said: (text) => output.split(text).length - 1,
        start: Effect.fnUntraced(function* (configuration) {
          yield* stop
          yield* write(configuration)
          output = ""
          child = spawn(command, ["-c", file], { stdio: ["ignore", "ignore", "pipe"] })
          child.stderr!.on("data", (chunk: Buffer) => (output += chunk.toString()))
          yield* untilSaid(started, 1)
        }, Effect.orDie),
        reload: Effect.fnUntraced(function* (configuration) {
          const before = output.split(reloaded).length
          yield* write(configuration)
          child!.kill("SIGHUP")
          yield* untilSaid(reloaded, before)
        }, Effect.orDie),
      }
    }),
  ).pipe(Layer.provide(NodeServices.layer))
}
