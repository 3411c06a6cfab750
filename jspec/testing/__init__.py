"""What tests share: tiny models, hostile and oracle drafters. Nothing outside tests imports this."""
