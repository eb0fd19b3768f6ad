/** The life of an embedded server, played by a shell. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Logger } from "effect"
import { existsSync, rmSync, writeFileSync } from "node:fs"
import { inspect } from "../../src/embedded/reaper.ts"
import { startServer } from "../../src/embedded/supervisor.ts"
import { temporary } from "../../bench/servers/privateServers.ts"

/** A server that lives while there is a file, and is ready when there is another one. */
const shellServer = Effect.gen(function* () {
  const folder = yield* temporary
  const files = { may: `${folder}/may`, ready: `${folder}/ready` }
  for (const file of Object.values(files)) writeFileSync(file, "")
  const control = yield* startServer({
    name: "shell",
    command: "/bin/sh",
    args: ["-c", `trap "exit 0" TERM; while [ -e ${files.may} ]; do sleep 0.02; done; echo gone; exit 7`],
    logFile: `${folder}/log`,
    account: undefined,
    stopSignal: "SIGTERM",
    ready: () => Effect.sync(() => existsSync(files.ready)),
  })
  return { control, files, logFile: `${folder}/log` }
})

const until = (what: string, condition: () => boolean) =>
  Effect.gen(function* () {
    while (!condition()) yield* Effect.sleep("5 millis")
  }).pipe(Effect.timeoutOrElse({ duration: "10 seconds", orElse: () => Effect.die(new Error(what)) }))

type Shell = Effect.Success<typeof shellServer>

/** Tests one, with what is logged of it. */
const onShell = <A, E>(test: (shell: Shell & { readonly lines: Array<string> }) => Effect.Effect<A, E>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make<unknown, void>(({ message }) => void lines.push(String(message)))
    return Effect.flatMap(shellServer, (shell) => test({ ...shell, lines })).pipe(
      Effect.scoped,
      Effect.provide(Layer.merge(NodeServices.layer, Logger.layer([logger]))),
    )
  })

const kill = (pid: number) => Effect.sync(() => process.kill(pid, "SIGKILL"))

describe("an embedded server", () => {
  it.live("that ends by itself is started again, and that is said", () =>
    onShell(
      Effect.fnUntraced(function* ({ control, lines, logFile }) {
        for (let round = 1; round <= 2; round++) {
          const before = control.pid()
          yield* kill(before)
          yield* until("started again", () => control.pid() > 0 && control.pid() !== before)
        }
        assert.deepStrictEqual(lines, [
          `shell: ended by itself (SIGKILL); it is started again on its data. Its log is ${logFile}`,
          "shell: serves again",
          `shell: ended by itself (SIGKILL); it is started again on its data. Its log is ${logFile}`,
          "shell: serves again",
        ])
      }),
    ),
  )

  it.live("that is stopped stays down until it is started, also while it was being started again", () =>
    onShell(
      Effect.fnUntraced(function* ({ control, files, lines }) {
        yield* control.stop("SIGKILL")
        assert.strictEqual(control.pid(), -1)
        yield* control.start
        assert.isAbove(control.pid(), 0)
        assert.deepStrictEqual(lines, [])

        rmSync(files.ready)
        yield* kill(control.pid())
        yield* until("the accident is seen", () => lines.length === 1)
        yield* control.stop("SIGTERM")
        writeFileSync(files.ready, "")
        yield* control.start
        const pid = control.pid()
        yield* control.stop("SIGTERM")
        assert.isUndefined(yield* inspect(pid))
        assert.lengthOf(lines, 1)
      }),
    ),
  )

  it.live("is started again for a reason that somebody has", () =>
    onShell(
      Effect.fnUntraced(function* ({ control, lines }) {
        const before = control.pid()
        yield* control.restart("its disk has room again")
        assert.isUndefined(yield* inspect(before))
        yield* until("started again", () => control.pid() > 0)
        assert.deepStrictEqual(lines, ["shell: is started again, since its disk has room again", "shell: serves again"])
      }),
    ),
  )

  it.live("that does not stay up is lost, with its last words and where its log is", () =>
    onShell(
      Effect.fnUntraced(function* ({ control, files, lines, logFile }) {
        rmSync(files.may)
        rmSync(files.ready)
        const error = yield* Effect.flip(control.lost)
        assert.strictEqual(
          error.message,
          `shell: started again 5 times within 60 s, and does not stay up: ended at once (exit code 7): gone | gone | gone; its log is ${logFile}`,
        )
        assert.lengthOf(lines, 5)
        assert.strictEqual(control.pid(), -1)
        // Who knows better may still start it.
        for (const file of Object.values(files)) writeFileSync(file, "")
        yield* control.start
        assert.isAbove(control.pid(), 0)
      }),
    ),
  )
})
