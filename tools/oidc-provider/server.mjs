// An OpenID provider on this machine: discovery, client credentials, authorization code with PKCE (RFC 7636), device
// flow (RFC 8628), revocation (RFC 7009), introspection (RFC 7662), private_key_jwt (RFC 7523). A refresh token works
// once; a second use revokes all tokens of the same sign-in (RFC 9700, 4.14.2). Any account may sign in, with any
// password. All state is in memory. tools/components/oidc-provider.sh sets the environment.
import { createPublicKey, generateKeyPairSync, randomBytes } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { join } from 'node:path';

import { Provider } from 'oidc-provider';

const env = process.env;

// Reads private keys from PEM files, named after the algorithm's key type, and returns the public keys as a JWK set.
const publicKeys = (folder) => readdirSync(folder).map((file) => ({
  ...createPublicKey(readFileSync(join(folder, file))).export({ format: 'jwk' }),
  kid: file.replace(/\.key$/, ''),
  use: 'sig',
}));

const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code';
const DELEGATED = ['authorization_code', 'refresh_token', DEVICE];

// Native applications may use any port of this machine for the redirect (RFC 8252, 7.3).
const client = (id, grants, more) => ({
  client_id: id,
  application_type: 'native',
  redirect_uris: ['http://localhost/', 'http://127.0.0.1/'],
  response_types: ['code'],
  grant_types: grants,
  ...more,
});
const confidential = (id, method, more) => client(id, [...DELEGATED, 'client_credentials'], {
  token_endpoint_auth_method: method,
  ...more,
});
const withSecret = { client_secret: env.OIDC_CLIENT_SECRET };

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const lifespan = Number(env.ACCESS_TOKEN_LIFESPAN);

const provider = new Provider(env.OIDC_ISSUER, {
  clients: [
    confidential(env.OIDC_CLIENT_ID, 'client_secret_post', withSecret),
    confidential(env.OIDC_BASIC_CLIENT_ID, 'client_secret_basic', withSecret),
    confidential(env.OIDC_JWT_CLIENT_ID, 'private_key_jwt', { jwks: { keys: publicKeys(env.OIDC_JWT_KEYS) } }),
    client(env.OIDC_NATIVE_CLIENT_ID, DELEGATED, { token_endpoint_auth_method: 'none' }),
  ],
  features: {
    clientCredentials: { enabled: true },
    deviceFlow: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
  },
  scopes: ['openid', 'offline_access', 'email', 'mail'],
  claims: { email: ['email'] },
  conformIdTokenClaims: false, // the ID token itself names the account
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, email: id }) }),
  issueRefreshToken: (_, client) => client.grantTypeAllowed('refresh_token'),
  rotateRefreshToken: true,
  expiresWithSession: () => false,
  ttl: { AccessToken: lifespan, ClientCredentials: lifespan },
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig' }] },
  cookies: { keys: [randomBytes(32).toString('hex')] },
});

const tls = { cert: readFileSync(env.TLS_CERT), key: readFileSync(env.TLS_KEY) };
createServer(tls, provider.callback()).listen(Number(new URL(env.OIDC_ISSUER).port), '127.0.0.1');
