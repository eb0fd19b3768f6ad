/** A server list that can't be meant: every command says so at once, in one line without what may be a password. */
import { assert, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import { inherited } from "../service/service.ts"

const program = fileURLToPath(new URL("../../src/objectlog.js", import.meta.url))

const commands = [["worker"], ["start"], ["append", "1", "x"], ["query", "1"], ["dead", "list"], ["replay"], ["load"]]

it("a % that begins no escape in NATS_URL: exit code 2", () => {
  for (const command of commands) {
    const { status, stderr, stdout } = spawnSync(process.execPath, [program, ...command], {
      env: { ...inherited, NATS_URL: "nats://user:50%secret@broker", POSTGRES_IPS: "db" },
      encoding: "utf8",
    })
    assert.deepStrictEqual(
      [status, stdout, stderr],
      [
        2,
        "",
        'objectlog: NATS_URL: expected a user, password or token in which % begins an escape, itself as %25, got "<redacted>, item 1"\n',
      ],
      command.join(" "),
    )
  }
})
