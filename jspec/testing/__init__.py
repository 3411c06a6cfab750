"""What tests share: tiny models, hostile and oracle drafters. Nothing else imports this."""
