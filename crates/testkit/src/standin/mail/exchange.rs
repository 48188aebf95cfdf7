//! A stand-in of Exchange Online's mail servers, with High Volume Email. It accepts the tokens of a [`Microsoft`].
//! Tests administer it with PowerShell commands.
//!
//! Sources: "Authenticate an IMAP, POP or SMTP connection using OAuth", "Authenticated client SMTP submission", "SMTP
//! submission improvements", "High Volume Email" (Microsoft Learn), and published answers of the service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use mailtoken_mail::protocol::Protocol;
use serde_json::Value;

use super::{
    super::{
        jwt::Jwt,
        microsoft::{Cloud, Microsoft},
    },
    MailStandIn, Service,
    dialogue::{Spoken, Verdict, Words},
    powershell::Command,
};

/// Minimum remaining lifetime in seconds of a token that High Volume Email accepts.
const HVE_LIFETIME: i64 = 600;
/// The end of Exchange's SMTP answers: the name of the answering server.
const AT: &str = "[AM0PR01CA0001.eurprd01.prod.exchangelabs.com]";

/// A running stand-in of Exchange Online.
pub type Exchange = MailStandIn<Organization>;

/// Why a tenant's policy blocks logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The security defaults of the tenant.
    SecurityDefaults,
    /// A conditional access policy, or an authentication policy.
    ConditionalAccess,
}

/// The state of the stand-in: applications, mailboxes and policies.
pub struct Organization {
    cloud: Cloud,
    jwks: Value,
    smtp_disabled: bool,
    policy: Option<Policy>,
    principals: Vec<Principal>,
    mailboxes: BTreeMap<String, Mailbox>,
}

/// An application that `New-ServicePrincipal` has registered.
struct Principal {
    app_id: String,
    object_id: String,
    name: String,
}

/// A mailbox with IMAP and POP3 enabled. `None` in `smtp_disabled` means that the tenant's setting applies.
struct Mailbox {
    smtp_disabled: Option<bool>,
    imap: bool,
    pop: bool,
    /// Object ids of principals, and addresses of users, with FullAccess.
    full_access: BTreeSet<String>,
    high_volume: bool,
}

impl Cloud {
    /// Returns the names of Exchange's mail servers.
    fn mail_hosts(self) -> &'static [&'static str] {
        match self {
            Self::Public => {
                &["smtp.office365.com", "outlook.office365.com", "smtp-hve.office365.com", "smtp-mail.outlook.com"]
            }
            Self::UsGov => &["smtp.office365.us", "outlook.office365.us"],
            Self::China => &["smtp.partner.outlook.cn", "partner.outlook.cn"],
        }
    }
}

impl Exchange {
    /// Starts a stand-in without mailboxes on free ports. It accepts the tokens of `entra`. As in a new tenant,
    /// authenticated SMTP is off.
    pub fn beside(entra: &Microsoft) -> Self {
        Self::beside_at(entra, [127, 0, 0, 1].into(), [0; 3])
    }

    /// Starts a stand-in at this address, on these ports for SMTP, IMAP and POP3.
    pub fn beside_at(entra: &Microsoft, address: IpAddr, ports: [u16; 3]) -> Self {
        let cloud = entra.cloud();
        let tls = entra.issue(&[cloud.mail_hosts(), &["localhost"]].concat());
        let organization = Organization {
            cloud,
            jwks: entra.jwks(),
            smtp_disabled: true,
            policy: None,
            principals: vec![],
            mailboxes: BTreeMap::new(),
        };
        Self::serve(address, ports, tls, organization)
    }

    /// Adds a mailbox.
    pub fn mailbox(&self, address: &str) {
        self.add(address, false);
    }

    /// Adds an account of High Volume Email. Such an account only sends mail, with tokens of its own application.
    pub fn high_volume(&self, address: &str) {
        self.add(address, true);
    }

    fn add(&self, address: &str, high_volume: bool) {
        let mailbox = Mailbox { smtp_disabled: None, imap: true, pop: true, full_access: BTreeSet::new(), high_volume };
        self.service().mailboxes.insert(address.to_ascii_lowercase(), mailbox);
    }

    /// Sets the policy that blocks logins; `None` removes the policy.
    pub fn block(&self, policy: Option<Policy>) {
        self.service().policy = policy;
    }

    /// Executes a PowerShell command: `Set-TransportConfig`, `Set-CASMailbox`, `New-ServicePrincipal`,
    /// `Remove-ServicePrincipal`, `Add-MailboxPermission` or `Remove-MailboxPermission`.
    ///
    /// # Errors
    ///
    /// A text that names the missing part of the command, or a name that the organization does not have.
    pub fn run(&self, command: &str) -> Result<(), String> {
        self.service().run(&Command::read(command)?)
    }
}

impl Organization {
    fn run(&mut self, command: &Command) -> Result<(), String> {
        match command.name.to_ascii_lowercase().as_str() {
            "set-transportconfig" => {
                let disabled = command.switch("SmtpClientAuthenticationDisabled")?;
                self.smtp_disabled = disabled.unwrap_or(self.smtp_disabled);
            }
            "set-casmailbox" => {
                let smtp = command.switch("SmtpClientAuthenticationDisabled")?;
                let (imap, pop) = (command.switch("ImapEnabled")?, command.switch("PopEnabled")?);
                let mailbox = self.named(command)?;
                mailbox.smtp_disabled = smtp.or(mailbox.smtp_disabled);
                mailbox.imap = imap.unwrap_or(mailbox.imap);
                mailbox.pop = pop.unwrap_or(mailbox.pop);
            }
            "new-serviceprincipal" => {
                let [app_id, object_id] = [command.value("AppId")?, command.value("ObjectId")?].map(str::to_owned);
                if self.principals.iter().any(|known| known.app_id == app_id) {
                    return Err(format!("the application {app_id} has a service principal: Remove-ServicePrincipal"));
                }
                let name = command.optional("DisplayName").unwrap_or(&app_id).to_owned();
                self.principals.push(Principal { app_id, object_id, name });
            }
            "remove-serviceprincipal" => {
                let object_id =
                    self.principal(command.value("Identity")?).ok_or("there is no such service principal")?;
                self.principals.retain(|known| known.object_id != object_id);
            }
            "add-mailboxpermission" | "remove-mailboxpermission" => {
                let user = command.value("User")?;
                if command.value("AccessRights")? != "FullAccess" {
                    return Err("only FullAccess opens a mailbox".to_owned());
                }
                let address = user.to_ascii_lowercase();
                let user = self.principal(user).or_else(|| self.mailboxes.contains_key(&address).then_some(address));
                let user = user.ok_or("there is no such user or service principal")?;
                let mailbox = self.named(command)?;
                match command.name.to_ascii_lowercase().starts_with("add") {
                    true => mailbox.full_access.insert(user),
                    false => mailbox.full_access.remove(&user),
                };
            }
            _ => return Err(format!("{} is not a command of this stand-in", command.name)),
        }
        Ok(())
    }

    fn named(&mut self, command: &Command) -> Result<&mut Mailbox, String> {
        let identity = command.value("Identity")?.to_ascii_lowercase();
        self.mailboxes.get_mut(&identity).ok_or_else(|| format!("there is no mailbox {identity}"))
    }

    /// Returns the object id of a principal. `identity` is its object id, application id or name.
    fn principal(&self, identity: &str) -> Option<String> {
        let named = |known: &&Principal| [&known.object_id, &known.app_id, &known.name].contains(&&identity.to_owned());
        self.principals.iter().find(named).map(|known| known.object_id.clone())
    }

    /// Returns the claims of a token that this organization's Entra ID has issued for Exchange, if the token is valid
    /// now.
    fn verified(&self, token: &str, now: i64) -> Option<Jwt> {
        let jwt = Jwt::read(token).filter(|jwt| jwt.signed_by_set(&self.jwks, &["RS256"]))?;
        let for_exchange = self.cloud.resources().iter().any(|resource| jwt.is_for(resource));
        let valid = jwt.time("nbf")? <= now && now < jwt.time("exp")?;
        (for_exchange && valid).then_some(jwt)
    }
}

/// Whether a token has the permission for a protocol.
fn permits(jwt: &Jwt, protocol: Protocol) -> bool {
    let (role, scope) = match protocol {
        Protocol::Smtp => ("SMTP.SendAsApp", "SMTP.Send"),
        Protocol::Imap => ("IMAP.AccessAsApp", "IMAP.AccessAsUser.All"),
        Protocol::Pop3 => ("POP.AccessAsApp", "POP.AccessAsUser.All"),
    };
    match is_app(jwt) {
        true => jwt.claims["roles"].as_array().is_some_and(|roles| roles.iter().any(|known| known == role)),
        false => jwt.text("scp").split(' ').any(|known| known == scope),
    }
}

fn is_app(jwt: &Jwt) -> bool {
    jwt.text("idtyp") == "app"
}

fn refused(protocol: Protocol) -> Verdict {
    Verdict::Refused(match protocol {
        Protocol::Smtp => format!("535 5.7.3 Authentication unsuccessful {AT}"),
        Protocol::Imap => "NO AUTHENTICATE failed.".to_owned(),
        Protocol::Pop3 => "-ERR Authentication failure: unknown user name or bad password.".to_owned(),
    })
}

fn refused_smtp(words: &str) -> Verdict {
    Verdict::Refused(format!("535 5.7.139 Authentication unsuccessful, {words} {AT}"))
}

impl Service for Organization {
    const WORDS: Words = Words {
        smtp: Spoken {
            greeting: "220 AM0PR01CA0001.outlook.office365.com Microsoft ESMTP MAIL Service ready",
            offers: &[
                "SIZE 157286400",
                "PIPELINING",
                "DSN",
                "ENHANCEDSTATUSCODES",
                "AUTH LOGIN XOAUTH2",
                "8BITMIME",
                "BINARYMIME",
                "CHUNKING",
                "SMTPUTF8",
            ],
            accepted: "235 2.7.0 Authentication successful",
            throttled: "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more \
                        information. [AM0PR01CA0001.eurprd01.prod.exchangelabs.com]",
            too_long: "500 5.3.3 Line too long",
        },
        imap: Spoken {
            greeting: "OK The Microsoft Exchange IMAP4 service is ready. [QQBNADAAUABSADAAMQBDAEEA]",
            offers: &[
                "IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS ID UNSELECT CHILDREN IDLE NAMESPACE LITERAL+",
            ],
            accepted: "OK AUTHENTICATE completed.",
            throttled: "BAD Request is throttled. Suggested Backoff Time: 299523 milliseconds",
            too_long: "BAD Command Error. 11",
        },
        pop3: Spoken {
            greeting: "+OK The Microsoft Exchange POP3 service is ready. [QQBNADAAUABSADAAMQBDAEEA]",
            offers: &["TOP", "UIDL", "SASL PLAIN XOAUTH2", "USER"],
            accepted: "+OK User successfully authenticated.",
            throttled: "-ERR Server Unavailable. 21",
            too_long: "-ERR Protocol error. 17",
        },
        imap_unasked: None,
        imap_completed: "OK CAPABILITY completed.",
    };

    fn judge(&mut self, protocol: Protocol, user: &str, token: &str, now: i64) -> Verdict {
        let address = user.to_ascii_lowercase();
        let jwt = self.verified(token, now).filter(|jwt| permits(jwt, protocol));
        let (Some(jwt), Some(mailbox)) = (jwt, self.mailboxes.get(&address)) else { return refused(protocol) };
        let smtp = protocol == Protocol::Smtp;
        if let Some(policy) = self.policy {
            return match (smtp, policy) {
                (false, _) => refused(protocol),
                (true, Policy::SecurityDefaults) => refused_smtp(
                    "user is locked by your organization's security defaults policy. Contact your administrator.",
                ),
                (true, Policy::ConditionalAccess) => refused_smtp(
                    "the request did not meet the criteria to be authenticated successfully. Contact your administrator.",
                ),
            };
        }
        if mailbox.high_volume {
            let ends_in = jwt.time("exp").unwrap_or_default() - now;
            return match (smtp, ends_in < HVE_LIFETIME) {
                (false, _) => refused(protocol),
                (true, true) => Verdict::Refused(format!("501 5.5.127 The access token expires too soon {AT}")),
                (true, false) => Verdict::Accepted,
            };
        }
        match (protocol, mailbox.smtp_disabled) {
            (Protocol::Smtp, Some(true)) => {
                return refused_smtp(
                    "SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for \
                     more information.",
                );
            }
            (Protocol::Smtp, None) if self.smtp_disabled => {
                return refused_smtp(
                    "SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for \
                     more information.",
                );
            }
            (Protocol::Imap, _) if !mailbox.imap => return refused(protocol),
            (Protocol::Pop3, _) if !mailbox.pop => return refused(protocol),
            _ => {}
        }
        let bearer = match is_app(&jwt) {
            true => jwt.text("oid").to_owned(),
            false => jwt.text("upn").to_ascii_lowercase(),
        };
        // Exchange checks the object id in the token when it opens the mailbox.
        let unknown = is_app(&jwt) && !self.principals.iter().any(|known| known.object_id == bearer);
        match (mailbox.full_access.contains(&bearer) || bearer == address, unknown, protocol) {
            (_, true, Protocol::Imap) => Verdict::NotConnected,
            (true, false, _) => Verdict::Accepted,
            _ => refused(protocol),
        }
    }
}
