import { useState } from "preact/hooks";

export function LoginPage({ why, enter }: { why: string; enter: (token: string) => Promise<void> }) {
  const [token, setToken] = useState("");
  const [busy, setBusy] = useState(false);
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    await enter(token.trim());
    setBusy(false);
  };
  return (
    <main class="enter">
      <h1>Crescendo</h1>
      <form onSubmit={submit}>
        <label for="token">Token</label>
        <input
          id="token"
          type="password"
          autocomplete="off"
          spellcheck={false}
          required
          value={token}
          aria-describedby="token-help"
          aria-invalid={why ? true : undefined}
          onInput={(event) => setToken(event.currentTarget.value)}
        />
        <p id="token-help" class="faint">
          The one that the command line uses. It stays in this tab, and is forgotten when the tab is closed.
        </p>
        {why && (
          <p class="problem" role="alert">
            {why}
          </p>
        )}
        <button type="submit" class="primary" disabled={busy || token.trim() === ""}>
          Sign in
        </button>
      </form>
    </main>
  );
}
